//! What the log says of a process that has ended.

use std::fs;
use std::path::Path;

use serde_json::json;
use vmgenie_tests::{Guest, Snapshot};

use crate::run;

/// Ends with `status`, and the last line of the log is what standard error was told.
fn ends(place: &Snapshot, arguments: &[&str], status: i32, part: &str) {
    let log = place.dir().join("log");
    let _ = fs::remove_file(&log);
    let arguments = [&["--log-path", path(&log)], arguments].concat();
    let output = run(arguments);
    let told = crate::stderr(&output);
    assert_eq!(output.status.code(), Some(status), "{told}");
    let text = fs::read_to_string(&log).unwrap();
    let last = text.lines().last().unwrap_or_default();
    assert!(last.contains(part), "{text:?}, but {told:?}");
    assert_eq!(status == 0, !last.contains("ERROR"), "{last}");
    if status != 0 {
        let error = told.lines().find_map(|line| line.strip_prefix("error: "));
        assert!(last.ends_with(error.unwrap()), "{last:?}, but {told:?}");
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn every_end_is_told_in_the_log() {
    let place = Snapshot::new();
    let config = place.dir().join("config.json");
    let kernel = Guest::Tiny.kernel();
    let write = |machine: serde_json::Value, arguments: &str| {
        let source = json!({ "kernel_image_path": kernel, "boot_args": arguments });
        let file = json!({ "boot-source": source, "machine-config": machine, "drives": [] });
        fs::write(&config, file.to_string()).unwrap();
    };
    let start = ["--no-api", "--config-file", path(&config)];
    write(json!({ "mem_size_mib": 32 }), "");
    ends(&place, &start, 152, "vcpu_count");
    write(json!({ "vcpu_count": 1, "mem_size_mib": 32 }), "crash");
    ends(&place, &start, 3, "triple fault");
    let quiet = [&["--module", "nothing"][..], &start].concat();
    ends(&place, &quiet, 3, "triple fault");
    let filter = [&["--seccomp-filter", "f"][..], &start].concat();
    ends(&place, &filter, 153, "--seccomp-filter");
    let socket = place.dir().join("no/such/directory.sock");
    ends(
        &place,
        &["--api-sock", path(&socket)],
        1,
        "could not serve the API",
    );
}
