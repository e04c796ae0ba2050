//! Requests as a client that is not ours may send them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hyper::Method;
use hyper::body::Bytes;
use serde_json::Value;
use vmgenie_api::client::Client;

/// Sends `body` and returns the status and the answer's JSON (null if it has no body).
pub fn call(client: &mut Client, request: &str, body: impl Into<Bytes>) -> (u16, Value) {
    let (method, path) = request
        .split_once(' ')
        .expect("a request reads METHOD /path");
    let method = Method::from_bytes(method.as_bytes()).expect("a method");
    let answer = client
        .request(method, path, body)
        .unwrap_or_else(|error| panic!("{request}: {error:?}"));
    let json = match answer.body.is_empty() {
        true => Value::Null,
        false => serde_json::from_slice(&answer.body)
            .unwrap_or_else(|error| panic!("{request}: {error}: {:?}", answer.body)),
    };
    (answer.status.as_u16(), json)
}

/// Sends `body`, which must be refused with 400; returns the `fault_message`.
pub fn refused(client: &mut Client, request: &str, body: impl Into<Bytes>) -> String {
    let (status, json) = call(client, request, body);
    let message = json["fault_message"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(
        status == 400 && !message.is_empty() && json.as_object().is_some_and(|o| o.len() == 1),
        "{request} was not refused as it should be: {status} {json}"
    );
    message
}

/// Sends `body`, which must be refused with a message that holds `part`.
pub fn refused_with(client: &mut Client, request: &str, body: impl Into<Bytes>, part: &str) {
    let message = refused(client, request, body);
    assert!(
        message.contains(part),
        "{request}: {message:?} lacks {part:?}"
    );
}

/// Sends `body`, which must be answered with 204 and nothing else.
pub fn done(client: &mut Client, request: &str, body: impl Into<Bytes>) {
    let answer = call(client, request, body);
    assert_eq!(answer, (204, Value::Null), "{request}");
}

/// Sends `body`, which must be answered with 200; returns the JSON.
pub fn ok(client: &mut Client, request: &str, body: impl Into<Bytes>) -> Value {
    let (status, json) = call(client, request, body);
    assert_eq!(status, 200, "{request}: {json}");
    json
}

/// The permission bits of a file.
pub fn mode_of(path: &Path) -> u32 {
    fs::symlink_metadata(path)
        .expect("the file is there")
        .permissions()
        .mode()
        & 0o7777
}
