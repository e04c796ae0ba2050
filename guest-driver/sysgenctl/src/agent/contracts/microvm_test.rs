//! Tests of the hooks of Lambda MicroVMs with a program that answers what the test has it answer.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;

use super::*;

const LIMIT: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_secs(2);

/// What the program was asked: the hook and the body.
type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// A program; the answers come first, all others are 200. A status of 0 is no answer.
fn program(answers: &[u16]) -> (SocketAddr, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Asked::default();
    let noted = Arc::clone(&asked);
    let mut answers = VecDeque::from(answers.to_vec());
    thread::spawn(move || {
        let mut silent = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let lines: Vec<_> = (&mut reader)
                .lines()
                .map_while(Result::ok)
                .take_while(|l| !l.is_empty())
                .collect();
            let length = lines.iter().find_map(|line| {
                line.to_lowercase()
                    .strip_prefix("content-length: ")?
                    .parse()
                    .ok()
            });
            let mut body = vec![0; length.unwrap_or(0)];
            reader.read_exact(&mut body).unwrap();
            let path = lines[0]
                .strip_prefix("POST /aws/lambda-microvms/runtime/v1/")
                .unwrap();
            let hook = path.strip_suffix(" HTTP/1.1").unwrap().to_owned();
            noted
                .lock()
                .unwrap()
                .push((hook, serde_json::from_slice(&body).unwrap()));
            match answers.pop_front().unwrap_or(200) {
                0 => silent.push(stream),
                status => write!(
                    stream,
                    "HTTP/1.1 {status} x\r\nContent-Length: 2\r\n\r\n{{}}"
                )
                .unwrap(),
            }
        }
    });
    (address, asked)
}

const ALL: [MicrovmHook; 6] = [
    MicrovmHook::Ready,
    MicrovmHook::Suspend,
    MicrovmHook::Run,
    MicrovmHook::Validate,
    MicrovmHook::Resume,
    MicrovmHook::Terminate,
];

fn client(address: SocketAddr) -> Microvm {
    Microvm::new(address, &ALL, || Ok("web-1".into())).unwrap()
}

fn hooks(asked: &Asked) -> Vec<String> {
    let mut asked = asked.lock().unwrap();
    asked.drain(..).map(|(hook, _)| hook).collect()
}

fn turn(new: u32) -> Turn<'static> {
    Turn::within(new, LIMIT)
}

#[test]
fn the_original_is_suspended_and_resumed_and_a_clone_runs_once() {
    let (address, asked) = program(&[]);
    let client = client(address);
    client.before(&turn(3)).unwrap();
    client.after(Resumed::Original, &turn(3)).unwrap();
    // Once more, as something else has failed.
    client.after(Resumed::Original, &turn(3)).unwrap();
    assert_eq!(hooks(&asked), ["ready", "suspend", "resume"]);
    client.before(&turn(3)).unwrap();
    client.after(Resumed::CalledOff, &turn(3)).unwrap();
    assert_eq!(hooks(&asked), ["ready", "suspend", "resume"]);
    client.before(&turn(3)).unwrap();
    asked.lock().unwrap().clear();
    client.after(Resumed::Clone, &turn(5)).unwrap();
    client.after(Resumed::Clone, &turn(5)).unwrap();
    let (run, body) = asked.lock().unwrap()[0].clone();
    assert_eq!(
        (run.as_str(), &body["runHookPayload"]),
        ("run", &json!("web-1"))
    );
    assert_eq!(hooks(&asked), ["run", "validate"]);
    // Another machine has another name.
    client.after(Resumed::Clone, &turn(6)).unwrap();
    let other = asked.lock().unwrap()[0].1["microvmId"].clone();
    assert!(other != body["microvmId"] && other.as_str().is_some_and(|id| id.len() == 36));
    asked.lock().unwrap().clear();
    client.end(&turn(6)).unwrap();
    assert_eq!(hooks(&asked), ["terminate"]);
}

#[test]
fn who_needs_more_time_is_asked_again_until_the_limit() {
    let (address, asked) = program(&[503, 503, 200, 200, 503]);
    let client = client(address);
    client.before(&turn(3)).unwrap();
    assert_eq!(hooks(&asked), ["ready", "ready", "ready", "suspend"]);
    // Which is no answer of a hook of another kind.
    let error = client.after(Resumed::Original, &turn(3)).unwrap_err();
    let text = "POST /aws/lambda-microvms/runtime/v1/resume: answered 503 Service Unavailable";
    assert!(
        matches!(&error, ContractError::Failed(said) if said == text),
        "{error}"
    );

    let (address, asked) = program(&[503; 1000]);
    let error = super::tests::client(address)
        .before(&Turn::within(3, SHORT))
        .unwrap_err();
    assert!(matches!(error, ContractError::Hung(..)), "{error}");
    assert!(hooks(&asked).len() > 1);
}

#[test]
fn every_other_answer_fails_and_what_does_not_answer_hangs() {
    for status in [201, 204, 302, 404, 500] {
        let (address, _) = program(&[200, status]);
        let error = client(address).before(&turn(3)).unwrap_err().to_string();
        let suspend = format!("POST /aws/lambda-microvms/runtime/v1/suspend: answered {status}");
        assert!(error.starts_with(&suspend), "{error}");
    }
    let (address, asked) = program(&[0]);
    let client = client(address);
    let error = client.before(&Turn::within(3, SHORT)).unwrap_err();
    assert!(matches!(error, ContractError::Hung(..)), "{error}");
    // It was not suspended.
    client.after(Resumed::CalledOff, &turn(3)).unwrap();
    assert_eq!(hooks(&asked), ["ready"]);
}

#[test]
fn a_program_that_is_not_there_yet_is_waited_for_and_one_that_is_not_there_fails() {
    // Nobody listens on the first port.
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let client = client(nobody);
    let error = client.before(&Turn::within(3, SHORT)).unwrap_err();
    assert!(matches!(error, ContractError::Hung(..)), "{error}");
    let error = client
        .after(Resumed::Clone, &turn(5))
        .unwrap_err()
        .to_string();
    assert!(error.contains("v1/run: could not connect"), "{error}");
}

#[test]
fn a_new_agent_resumes_what_a_former_one_may_have_suspended() {
    let (address, asked) = program(&[]);
    client(address).after(Resumed::CalledOff, &turn(3)).unwrap();
    assert_eq!(hooks(&asked), ["resume"]);
}

#[test]
fn what_is_not_enabled_is_not_called_and_without_instance_data_the_payload_is_empty() {
    let (address, asked) = program(&[]);
    let none = || Err(io::ErrorKind::NotFound.into());
    let client = Microvm::new(address, &[MicrovmHook::Run], none).unwrap();
    client.before(&turn(3)).unwrap();
    client.after(Resumed::Clone, &turn(5)).unwrap();
    client.after(Resumed::Original, &turn(5)).unwrap();
    client.end(&turn(5)).unwrap();
    assert_eq!(asked.lock().unwrap()[0].1["runHookPayload"], json!(""));
    assert_eq!(hooks(&asked), ["run"]);
    let long = || Ok("x".repeat(PAYLOAD + 1));
    let client = Microvm::new(address, &[MicrovmHook::Run], long).unwrap();
    client.after(Resumed::Clone, &turn(5)).unwrap_err();
    assert_eq!(hooks(&asked), Vec::<String>::new());
}
