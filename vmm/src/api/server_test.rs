use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::sync::mpsc;

use hyper::Method;
use tempfile::TempDir;
use vmgenie_api::client::{Client, ClientError};

use super::*;
use crate::api::testing::{agreeable, controller};
use crate::controller::command::{Command, CommandResult};

struct Fixture {
    dir: TempDir,
    socket: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        Self { dir, socket }
    }

    fn try_serve(
        &self,
        script: impl FnMut(&Command) -> CommandResult + Send + 'static,
    ) -> Result<ApiThread, ApiError> {
        let info = ApiInfo {
            id: "test".to_owned(),
            version: "1.2.3".to_owned(),
            body_limit: vmgenie_api::limits::BODY_LIMIT,
        };
        spawn(&self.socket, info, controller(script).0)
    }

    fn serve(&self) -> ApiThread {
        self.try_serve(agreeable).unwrap()
    }

    fn client(&self) -> Client {
        let mut client = Client::new(&self.socket).unwrap();
        client.set_timeout(Some(Duration::from_secs(20)));
        client
    }

    fn connect(&self) -> StdStream {
        let stream = StdStream::connect(&self.socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }
}

#[test]
fn the_socket_is_private_and_goes_with_the_api() {
    let fixture = Fixture::new();
    let api = fixture.serve();
    assert_eq!(
        fs::metadata(&fixture.socket).unwrap().permissions().mode() & 0o7777,
        0o600
    );
    api.shutdown();
    assert_eq!(fs::read_dir(fixture.dir.path()).unwrap().count(), 0);
}

#[test]
fn a_socket_that_nobody_listens_on_is_replaced() {
    let fixture = Fixture::new();
    drop(StdListener::bind(&fixture.socket).unwrap());
    assert!(fixture.socket.exists());
    assert!(matches!(
        fixture.client().info(),
        Err(ClientError::NotRunning(_))
    ));
    let _api = fixture.serve();
    assert_eq!(fixture.client().info().unwrap().id, "test");
}

#[test]
fn a_socket_of_a_living_vmm_is_left_alone() {
    let fixture = Fixture::new();
    let _first = fixture.serve();
    let error = fixture.try_serve(agreeable).unwrap_err();
    assert!(
        matches!(error, ApiError::Socket(SocketError::InUse(_))),
        "{error:?}"
    );
    assert_eq!(fixture.client().info().unwrap().id, "test");
}

#[test]
fn of_many_vmms_that_find_a_dead_socket_one_gets_the_path() {
    let fixture = Fixture::new();
    for _ in 0..20 {
        drop(StdListener::bind(&fixture.socket).unwrap());
        let served: Vec<ApiThread> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| fixture.try_serve(agreeable).ok()))
                .collect();
            threads
                .into_iter()
                .filter_map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(served.len(), 1);
        assert_eq!(fixture.client().info().unwrap().id, "test");
    }
}

#[test]
fn a_file_in_the_place_of_the_socket_is_left_alone() {
    let fixture = Fixture::new();
    fs::write(&fixture.socket, "precious").unwrap();
    let error = fixture.try_serve(agreeable).unwrap_err();
    assert!(
        matches!(error, ApiError::Socket(SocketError::NotASocket(_))),
        "{error:?}"
    );
    assert_eq!(fs::read_to_string(&fixture.socket).unwrap(), "precious");
}

#[test]
fn a_socket_that_has_taken_the_place_of_ours_is_not_removed() {
    let fixture = Fixture::new();
    let api = fixture.serve();
    fs::remove_file(&fixture.socket).unwrap();
    fs::write(&fixture.socket, "another").unwrap();
    drop(api);
    assert!(fixture.socket.exists());
}

#[test]
fn a_missing_directory_is_an_error_that_names_the_path() {
    let mut fixture = Fixture::new();
    fixture.socket = fixture.dir.path().join("missing/api.sock");
    let error = fixture.try_serve(agreeable).unwrap_err();
    let ApiError::Socket(error) = error else {
        panic!("{error:?}")
    };
    assert!(error.to_string().contains("missing/api.sock"), "{error}");
}

#[test]
fn a_path_that_is_too_long_is_told_with_what_it_may_have() {
    let mut fixture = Fixture::new();
    fixture.socket = fixture.dir.path().join("x".repeat(108));
    let ApiError::Socket(error) = fixture.try_serve(agreeable).unwrap_err() else {
        panic!("another error")
    };
    let error = error.to_string();
    assert!(
        error.contains("107 bytes at most") && error.contains("xxx"),
        "{error}"
    );
}

#[test]
fn the_client_speaks_every_request() {
    use vmgenie_api::wire::*;
    let fixture = Fixture::new();
    let _api = fixture.serve();
    let mut client = fixture.client();
    assert_eq!(client.info().unwrap().state, State::Running);
    assert_eq!(client.version().unwrap().vmgenie_version, "1.2.3");
    assert_eq!(
        client.config().unwrap().machine_config,
        client.machine_config().unwrap()
    );
    client.set_machine_config(1, 128).unwrap();
    let kernel_image_path = PathBuf::from("/k");
    let source = BootSourceBody {
        kernel_image_path,
        initrd_path: None,
        boot_args: None,
    };
    client.set_boot_source(&source).unwrap();
    client.start().unwrap();
    client.pause().unwrap();
    client.resume().unwrap();
    let made = client.create_snapshot(&SnapshotCreate {
        snapshot_type: SnapshotType::Full,
        snapshot_path: "/s".into(),
        mem_file_path: "/m".into(),
        resume_vm: true,
        pause_vm: false,
        copy_drives: false,
        cooperative: None,
    });
    assert_eq!(made.unwrap().standstill, Duration::from_micros(1234));
    let load = SnapshotLoad {
        resume_vm: true,
        ..SnapshotLoad::of("/s".into(), "/m".into())
    };
    client.load_snapshot(&load).unwrap();
    assert_eq!(client.generation().unwrap().changes, 0);
    assert_eq!(client.new_generation().unwrap().changes, 1);
    let refused = client.set_machine_config(0, 128).unwrap_err();
    assert!(
        refused
            .to_string()
            .starts_with("PUT /machine-config failed: 0 vCPUs"),
        "{refused}"
    );
    let answer = client.request(Method::DELETE, "/", "").unwrap();
    assert_eq!(answer.status.as_u16(), 400);
}

#[test]
fn a_client_that_says_http_1_0_may_go_on_as_with_firecracker() {
    let fixture = Fixture::new();
    let _api = fixture.serve();
    let mut stream = fixture.connect();
    for _ in 0..3 {
        stream
            .write_all(b"PATCH /vm HTTP/1.0\r\nContent-Length: 18\r\n\r\n{\"state\":\"Paused\"}")
            .unwrap();
        let mut buffer = [0; 1024];
        let len = stream.read(&mut buffer).unwrap();
        let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
        assert!(text.starts_with("HTTP/1.1 204 "), "{text}");
        assert!(text.contains("server: vmgenie"), "{text}");
    }
}

#[test]
fn the_client_says_when_there_is_no_socket() {
    let error = Fixture::new().client().info().unwrap_err();
    assert!(matches!(error, ClientError::NoSocket(_)), "{error:?}");
}

#[test]
fn the_client_connects_again_to_a_vmm_that_was_restarted() {
    let fixture = Fixture::new();
    let api = fixture.serve();
    let mut client = fixture.client();
    client.info().unwrap();
    api.shutdown();
    let _api = fixture.serve();
    // The first call may find the old connection dead; the next one must not.
    let _ = client.info();
    client.info().unwrap();
}

#[test]
fn silent_clients_do_not_keep_others_out() {
    let fixture = Fixture::new();
    let _api = fixture.serve();
    let silent: Vec<StdStream> = (0..2 * MAX_CONNECTIONS)
        .map(|index| {
            let mut stream = fixture.connect();
            // Some say nothing, some stop in the head, some in the body.
            let parts = [
                "",
                "PUT /vm",
                "PATCH /vm HTTP/1.1\r\nContent-Length: 9\r\n\r\n{",
            ];
            stream
                .write_all(parts[index % parts.len()].as_bytes())
                .unwrap();
            stream
        })
        .collect();
    fixture.client().info().unwrap();
    drop(silent);
}

#[test]
fn a_client_that_waits_for_the_machine_is_not_cut_off_by_new_ones() {
    let fixture = Fixture::new();
    let (go, wait) = mpsc::channel::<()>();
    let script = move |command: &Command| {
        if *command == Command::Pause {
            wait.recv().unwrap();
        }
        agreeable(command)
    };
    let _api = fixture.try_serve(script).unwrap();
    std::thread::scope(|scope| {
        let paused = scope.spawn(|| fixture.client().pause());
        std::thread::sleep(Duration::from_millis(50));
        let silent: Vec<StdStream> = (0..2 * MAX_CONNECTIONS)
            .map(|_| fixture.connect())
            .collect();
        // The machine is not needed for this one, so it is answered meanwhile.
        fixture.client().version().unwrap();
        go.send(()).unwrap();
        paused.join().unwrap().unwrap();
        drop(silent);
    });
}

#[test]
fn a_client_may_wait_for_100_continue_and_close_its_side() {
    let fixture = Fixture::new();
    let _api = fixture.serve();
    let mut stream = fixture.connect();
    let head = "PATCH /vm HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\n\
                Content-Length: 18\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(br#"{"state":"Paused"}"#).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 204 No Content"), "{answer}");
}

#[test]
fn a_body_that_is_too_long_is_refused_with_a_message_over_the_socket() {
    let fixture = Fixture::new();
    let _api = fixture.serve();
    for len in [vmgenie_api::limits::BODY_LIMIT + 1, 500_000] {
        let answer = fixture
            .client()
            .request(Method::PUT, "/actions", vec![b' '; len])
            .unwrap();
        assert_eq!(answer.status.as_u16(), 400);
        assert!(String::from_utf8_lossy(&answer.body).contains("51200"));
    }
    let mut stream = fixture.connect();
    let head = "PUT /actions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("fault_message"), "{answer}");
}

#[test]
fn a_head_that_cannot_be_read_is_answered_as_everything_else_is() {
    let fixture = Fixture::new();
    let _api = fixture.serve();
    let long = "x".repeat(17 << 10);
    let many = "X: y\r\n".repeat(101);
    for head in [
        format!("GET /version HTTP/1.1\r\nX: {long}\r\n\r\n"),
        format!("GET /{long} HTTP/1.1\r\n\r\n"),
        format!("GET /version HTTP/1.1\r\n{many}\r\n"),
        "GET /version HTTP/3.7\r\n\r\n".to_owned(),
        "GET /version\r\n\r\n".to_owned(),
        "G@T /version HTTP/1.1\r\n\r\n".to_owned(),
        "GET /version HTTP/1.1\r\nX: a\r\n folded\r\n\r\n".to_owned(),
        "PUT /actions HTTP/1.1\r\nContent-Length: 1x\r\n\r\n{".to_owned(),
        "PUT /actions HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{".to_owned(),
        "PUT /actions HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n".to_owned(),
        "PUT /actions HTTP/1.1\r\nTransfer-Encoding: x\r\n\r\n".to_owned(),
    ] {
        // The first request of a connection, and a later one.
        for before in [
            "",
            "PATCH /vm HTTP/1.1\r\nContent-Length: 18\r\n\r\n{\"state\":\"Paused\"}",
        ] {
            let mut stream = fixture.connect();
            let _ = stream.write_all(format!("{before}{head}").as_bytes());
            let mut answer = Vec::new();
            // The rest of a head that is too long is not read: a reset comes behind the answer.
            let _ = stream.read_to_end(&mut answer);
            let answer = String::from_utf8(answer).unwrap();
            let last = answer.rsplit_once("HTTP/1.1 ").unwrap().1;
            let shown = &head[..head.len().min(60)];
            assert!(last.starts_with("400 Bad Request\r\n"), "{shown}: {answer}");
            assert!(
                last.contains("\r\nserver: vmgenie\r\n"),
                "{shown}: {answer}"
            );
            let (_, body) = last.split_once("\r\n\r\n").unwrap();
            let fault: vmgenie_api::wire::Fault = serde_json::from_str(body).unwrap();
            assert!(
                fault.fault_message.contains("head of the request"),
                "{shown}: {answer}"
            );
        }
    }
}

#[test]
fn what_is_no_http_is_cut_off_and_harms_nobody() {
    let fixture = Fixture::new();
    let _api = fixture.serve();
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        &[0; 4096],
        &[b'x'; 1 << 20],
    ] {
        let mut stream = fixture.connect();
        let _ = stream.write_all(garbage); // the other side may hang up before it has read everything
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    fixture.client().info().unwrap();
}

#[test]
fn an_answer_that_is_under_way_leaves_before_the_api_ends() {
    let fixture = Fixture::new();
    let (asked, was_asked) = mpsc::channel();
    let api = fixture.try_serve(move |command: &Command| {
        asked.send(()).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        agreeable(command)
    });
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| fixture.client().pause());
        was_asked.recv().unwrap();
        api.unwrap().shutdown();
        answer.join().unwrap().unwrap();
    });
}

/// Not a test but a measurement: `cargo test --release -- --ignored --nocapture round_trip`.
#[test]
#[ignore = "prints a number"]
fn how_long_a_round_trip_takes() {
    let fixture = Fixture::new();
    let _api = fixture.serve();
    let mut client = fixture.client();
    let mut took: Vec<Duration> = (0..2000)
        .map(|_| {
            let started = Instant::now();
            client.pause().unwrap();
            started.elapsed()
        })
        .collect();
    took.sort();
    println!(
        "PATCH /vm, kept alive: p50 {:?}, p90 {:?}",
        took[1000], took[1800]
    );
}
