//! Tests of the runtime API with a runtime and clients that say what the test has them say.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::args::{Cli, Command as Commands};

pub(super) const LIMIT: Duration = Duration::from_secs(20);
/// What is too short for what never comes.
pub(super) const SHORT: Duration = Duration::from_millis(400);

pub(super) const RESTORE: &str = "GET /2018-06-01/runtime/restore/next";
pub(super) const NEXT: &str = "GET /2018-06-01/runtime/invocation/next";
pub(super) const INVOKE: &str = "POST /2015-03-31/functions/function/invocations";

pub(super) struct Scene {
    pub(super) dir: tempfile::TempDir,
    pub(super) lambda: Lambda,
}

impl Scene {
    pub(super) fn new(options: &str) -> Self {
        Self::in_machine(tempfile::tempdir().unwrap(), options)
    }

    pub(super) fn in_machine(dir: tempfile::TempDir, options: &str) -> Self {
        use clap::Parser;
        let line = format!("sysgenctl agent --lambda 127.0.0.1:0 {options}");
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let Commands::Agent(args) = &cli.command else {
            panic!("not an agent");
        };
        let args = &args.contracts.lambda;
        let lambda = Lambda::start(args.lambda.unwrap(), args, dir.path()).unwrap();
        Self { dir, lambda }
    }

    pub(super) fn before(&self, limit: Duration) -> Result<(), String> {
        self.lambda
            .before(&Turn::within(5, limit))
            .map_err(|error| error.to_string())
    }

    pub(super) fn after(&self, outcome: Resumed, limit: Duration) -> Result<(), String> {
        self.lambda
            .after(outcome, &Turn::within(5, limit))
            .map_err(|error| error.to_string())
    }

    /// Sends a request, whose answer is to be waited for.
    pub(super) fn send(&self, line: &str, body: &[u8]) -> Call {
        let stream = TcpStream::connect(self.lambda.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Call(stream).again(line, body)
    }

    pub(super) fn ask(&self, line: &str, body: &str) -> (u16, String) {
        let (status, _, body) = self.send(line, body.as_bytes()).answer();
        (status, body)
    }

    /// A runtime that waits for the restore.
    pub(super) fn waiting(&self) -> Call {
        let call = self.send(RESTORE, b"");
        let there = |state: &mut State| state.waiting.is_some().then_some(());
        self.lambda.shared.wait(LIMIT, there).unwrap();
        self.before(LIMIT).unwrap();
        call
    }

    pub(super) fn post(&self, path: &str, body: &str) -> (u16, String) {
        self.ask(&format!("POST /2018-06-01/runtime/{path}"), body)
    }
}

pub(super) struct Call(TcpStream);

impl Call {
    /// Sends one more request on the same connection.
    fn again(mut self, line: &str, body: &[u8]) -> Self {
        let length = body.len();
        let head = format!("{line} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        self.0.write_all(head.as_bytes()).unwrap();
        // Where the body is refused, it may not be taken.
        let _ = self.0.write_all(body);
        self
    }

    /// Status, head and body.
    pub(super) fn answer(mut self) -> (u16, String, String) {
        let mut bytes = Vec::new();
        let mut buffer = [0; 65536];
        loop {
            if let Some(answer) = whole(&String::from_utf8_lossy(&bytes)) {
                return answer;
            }
            match self.0.read(&mut buffer).unwrap() {
                0 => panic!("closed after {}", String::from_utf8_lossy(&bytes)),
                read => bytes.extend_from_slice(&buffer[..read]),
            }
        }
    }

    pub(super) fn is_answered(&self) -> bool {
        self.0.set_read_timeout(Some(SHORT)).unwrap();
        let answered = self.0.peek(&mut [0]).is_ok();
        self.0.set_read_timeout(Some(LIMIT)).unwrap();
        answered
    }
}

fn whole(text: &str) -> Option<(u16, String, String)> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let head = head.to_lowercase();
    let length = value(&head, "content-length").parse().ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    (body.len() >= length).then(|| (status, head, body.to_owned()))
}

fn value(head: &str, name: &str) -> String {
    let line = head
        .lines()
        .find(|line| line.starts_with(&format!("{name}:")));
    line.map_or_else(String::new, |line| line[name.len() + 1..].trim().to_owned())
}

#[test]
fn a_template_waits_through_forks_and_each_clone_is_let_go_when_it_serves() {
    let template = Scene::new("");
    let runtime = template.waiting();
    for _ in 0..2 {
        template.before(LIMIT).unwrap();
        template.after(Resumed::Original, LIMIT).unwrap();
    }
    template.before(LIMIT).unwrap();
    template.after(Resumed::CalledOff, LIMIT).unwrap();
    assert!(!runtime.is_answered());
    // In a clone it is another machine that goes on here.
    thread::scope(|scope| {
        let adapted = scope.spawn(|| template.after(Resumed::Clone, LIMIT));
        assert_eq!(runtime.answer().0, 200);
        thread::sleep(SHORT);
        assert!(!adapted.is_finished());
        let next = template.send(NEXT, b"");
        adapted.join().unwrap().unwrap();
        assert!(!next.is_answered());
    });
    assert_eq!(
        template.before(LIMIT).unwrap_err(),
        "the runtime was restored already, and its contract has no way to ask it once more"
    );
}

#[test]
fn a_runtime_that_comes_later_is_waited_for_and_one_that_does_not_is_asked_for() {
    let scene = Scene::new("");
    let error = scene.before(SHORT).unwrap_err();
    let wanted = format!("AWS_LAMBDA_RUNTIME_API={}", scene.lambda.address);
    assert!(
        error.starts_with("not within 400ms") && error.contains(&wanted),
        "{error}"
    );
    thread::scope(|scope| {
        let quiesced = scope.spawn(|| scene.before(LIMIT));
        thread::sleep(SHORT);
        let _runtime = scene.send(RESTORE, b"");
        quiesced.join().unwrap().unwrap();
    });
    // Its connection has ended, and so has its place.
    let start = Instant::now();
    while scene.before(SHORT).is_ok() {
        assert!(start.elapsed() < LIMIT);
    }
}

#[test]
fn what_a_runtime_says_of_its_beginning_ends_the_wait() {
    let scene = Scene::new("");
    let fault = r#"{"errorType":"KeyError","errorMessage":"no\nluck"}"#;
    thread::scope(|scope| {
        let quiesced = scope.spawn(|| scene.before(LIMIT));
        let (status, body) = scene.post("init/error", fault);
        assert_eq!((status, body.as_str()), (202, r#"{"status":"OK"}"#));
        let error = quiesced.join().unwrap().unwrap_err();
        assert_eq!(
            error,
            "the runtime failed before it waited: KeyError: no luck"
        );
    });
    // The next one is another one.
    scene.post("init/error", fault);
    let _runtime = scene.waiting();
}

#[test]
fn a_runtime_that_was_not_asked_to_wait_is_told_at_once() {
    let scene = Scene::new("");
    let _next = scene.send(NEXT, b"");
    thread::sleep(SHORT);
    let error = scene.before(LIMIT).unwrap_err();
    assert!(
        error.contains("AWS_LAMBDA_INITIALIZATION_TYPE=snap-start"),
        "{error}"
    );
}

#[test]
fn a_runtime_that_fails_or_hangs_after_the_restore_is_told_until_another_one_serves() {
    let scene = Scene::new("");
    let runtime = scene.waiting();
    let error = scene.after(Resumed::Clone, SHORT).unwrap_err();
    let hung = "was let go, but has not asked for an event since";
    assert!(
        error.contains("(process ") && error.ends_with(hung),
        "{error}"
    );
    assert_eq!(runtime.answer().0, 200);
    let fault = r#"{"errorType":"OSError","errorMessage":"no route"}"#;
    assert_eq!(scene.post("restore/error", fault).0, 202);
    assert_eq!(
        scene.after(Resumed::Clone, LIMIT).unwrap_err(),
        "the runtime failed after the restore: OSError: no route"
    );
    // Another one is started, and is let go at once.
    assert_eq!(scene.ask(RESTORE, "").0, 200);
    scene.after(Resumed::Clone, SHORT).unwrap_err();
    let _next = scene.send(NEXT, b"");
    scene.after(Resumed::Clone, LIMIT).unwrap();
}

#[test]
fn a_runtime_that_ends_after_the_restore_is_told_by_name() {
    let scene = Scene::new("");
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{}; printf '{RESTORE} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' >&3; \
         read line <&3; exit 65",
        scene.lambda.address.port()
    );
    let mut child = Command::new("bash")
        .args(["-c", &script])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    scene.before(LIMIT).unwrap();
    let error = scene.after(Resumed::Clone, LIMIT).unwrap_err();
    child.wait().unwrap();
    let ended = format!("bash (process {}) has ended", child.id());
    assert!(error.contains(&ended), "{error}");
}

#[test]
fn a_machine_without_a_runtime_has_nobody_to_adapt_and_the_next_agent_knows_that_it_was_restored() {
    let scene = Scene::new("");
    // Nobody was let go, so that nobody can have failed.
    assert_eq!(scene.post("restore/error", "{}").0, 202);
    scene.after(Resumed::Clone, LIMIT).unwrap();
    let next = Scene::in_machine(scene.dir, "");
    assert_eq!(next.ask(RESTORE, "").0, 200);
    next.before(SHORT).unwrap_err();
}

#[test]
fn the_original_is_let_go_if_asked_and_there_is_one_place_to_wait() {
    let scene = Scene::new("--lambda-original return");
    let runtime = scene.waiting();
    let (status, body) = scene.ask(RESTORE, "");
    assert_eq!(status, 409, "{body}");
    assert!(!runtime.is_answered());
    let _next = scene.send(NEXT, b"");
    scene.after(Resumed::CalledOff, LIMIT).unwrap();
    assert!(!runtime.is_answered());
    scene.after(Resumed::Original, SHORT).unwrap_err();
    assert_eq!(runtime.answer().0, 200);
    let _next = scene.send(NEXT, b"");
    scene.after(Resumed::Original, LIMIT).unwrap();
}

/// Takes the next event: its name and its head.
fn take(scene: &Scene, event: &str) -> (String, String) {
    let (status, head, body) = scene.send(NEXT, b"").answer();
    assert_eq!((status, body.as_str()), (200, event));
    (value(&head, "lambda-runtime-aws-request-id"), head)
}

#[test]
fn events_come_one_at_a_time_and_their_answers_go_to_who_has_asked() {
    let scene = Scene::new("");
    let client = scene.send(INVOKE, b"{\"n\":1}");
    let (one, head) = take(&scene, "{\"n\":1}");
    assert!(value(&head, "lambda-runtime-invoked-function-arn").starts_with("arn:aws:lambda:"));
    let deadline: u128 = value(&head, "lambda-runtime-deadline-ms").parse().unwrap();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
    assert!((now + 200_000..now + 300_001).contains(&deadline));
    let second = scene.send(INVOKE, b"2");
    let waiting = scene.send(NEXT, b"");
    assert!(!waiting.is_answered());
    assert_eq!(scene.post("invocation/another/response", "x").0, 400);
    let (status, body) = scene.post(&format!("invocation/{one}/response"), "\"done\"");
    assert_eq!((status, body.as_str()), (202, r#"{"status":"OK"}"#));
    let (status, head, body) = client.answer();
    assert_eq!((status, body.as_str()), (200, "\"done\""));
    assert_eq!(value(&head, "x-amz-function-error"), "");

    let (_, head, _) = waiting.answer();
    let two = value(&head, "lambda-runtime-aws-request-id");
    assert_ne!(one, two);
    scene.post(&format!("invocation/{two}/error"), r#"{"errorType":"E"}"#);
    let (status, head, body) = second.answer();
    assert_eq!((status, body.as_str()), (200, r#"{"errorType":"E"}"#));
    assert_eq!(value(&head, "x-amz-function-error"), "unhandled");
    assert_eq!(scene.post(&format!("invocation/{two}/error"), "{}").0, 400);
}

#[test]
fn a_client_that_gives_up_or_waits_for_too_long_spoils_nothing() {
    let scene = Scene::new("--lambda-timeout 1s");
    let client = scene.send(INVOKE, b"1");
    let (id, _) = take(&scene, "1");
    client.0.shutdown(Shutdown::Both).unwrap();
    drop(client);
    let slow = scene.send(INVOKE, b"2");
    let (second, _) = take(&scene, "2");
    assert_eq!(
        scene.post(&format!("invocation/{id}/response"), "late").0,
        202
    );
    let (status, _, body) = slow.answer();
    assert_eq!(status, 504, "{body}");
    assert_eq!(
        scene
            .post(&format!("invocation/{second}/response"), "late")
            .0,
        202
    );
    let third = scene.send(INVOKE, b"3");
    let (id, _) = take(&scene, "3");
    scene.post(&format!("invocation/{id}/response"), "in time");
    assert_eq!(third.answer().2, "in time");
}

#[test]
fn a_runtime_s_connection_lasts_while_it_is_at_work() {
    let scene = Scene::new("");
    let client = scene.send(INVOKE, b"1");
    let runtime = scene.send(NEXT, b"");
    let connection = Call(runtime.0.try_clone().unwrap());
    let (_, head, _) = runtime.answer();
    // Longer than the head of a request may take.
    thread::sleep(Duration::from_secs(2));
    let id = value(&head, "lambda-runtime-aws-request-id");
    let answer = format!("POST /2018-06-01/runtime/invocation/{id}/response");
    assert_eq!(connection.again(&answer, b"done").answer().0, 202);
    assert_eq!(client.answer().2, "done");
}

#[test]
fn an_event_whose_runtime_has_begun_anew_is_lost_and_its_client_knows() {
    let scene = Scene::new("");
    let client = scene.send(INVOKE, b"1");
    take(&scene, "1");
    let _runtime = scene.send(RESTORE, b"");
    assert_eq!(client.answer().0, 502);
}

#[test]
fn what_is_too_much_or_no_request_is_refused_and_others_are_served() {
    let scene = Scene::new("");
    let exact = vec![b'x'; events::EVENT_LIMIT];
    let client = scene.send(INVOKE, &exact);
    let (status, head, body) = scene.send(NEXT, b"").answer();
    assert_eq!((status, body.len()), (200, exact.len()));
    let id = value(&head, "lambda-runtime-aws-request-id");
    let answer = format!("POST /2018-06-01/runtime/invocation/{id}/response");
    let (status, ..) = scene
        .send(&answer, &[exact, b"x".to_vec()].concat())
        .answer();
    assert_eq!(status, 413);
    // Who announces more than that is told before it is sent.
    let mut stream = TcpStream::connect(scene.lambda.address).unwrap();
    let head = "POST /2018-06-01/runtime/init/error HTTP/1.1\r\nHost: x\r\n\
                Content-Length: 9999999999999\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    assert_eq!(Call(stream).answer().0, 413);
    assert_eq!(
        scene
            .post(&format!("invocation/{id}/response"), "\"small\"")
            .0,
        202
    );
    assert_eq!(client.answer().2, "\"small\"");
    for line in [
        "GET /",
        "PUT /2018-06-01/runtime/restore/next",
        "POST /2018-06-01/runtime/invocation//",
        "POST /2018-06-01/runtime/invocation/x/response/y",
    ] {
        assert_eq!(scene.ask(line, "").0, 404, "{line}");
    }
    for junk in [&b"\0\xff\x16\x03"[..], b"GET", &vec![b'A'; 1 << 20]] {
        let mut stream = TcpStream::connect(scene.lambda.address).unwrap();
        let _ = stream.write_all(junk);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    // More than there are places, all of whom leave in the end.
    let silent: Vec<_> = (0..200)
        .map(|_| TcpStream::connect(scene.lambda.address).unwrap())
        .collect();
    drop(silent);
    let start = Instant::now();
    let served = || {
        let mut stream = TcpStream::connect(scene.lambda.address).unwrap();
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.read(&mut [0]).is_ok_and(|read| read > 0)
    };
    while !served() {
        assert!(start.elapsed() < LIMIT);
    }
}
