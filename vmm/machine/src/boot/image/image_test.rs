use std::io::Write;

use super::*;

fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    command
}

fn read(script: &str) -> Result<Contents, ImageError> {
    let mut image = tempfile::tempfile().unwrap();
    image.write_all(b"image").unwrap();
    image.rewind().unwrap();
    read_by(shell(script), image, Duration::from_secs(2))
}

fn text(mut file: File) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn what_a_reader_writes_is_kernel_and_initrd() {
    let found = read("/bin/cat; echo initrd >&2").unwrap();
    assert_eq!(text(found.kernel), "image");
    assert_eq!(text(found.initrd.unwrap()), "initrd\n");
    assert!(read("echo kernel").unwrap().initrd.is_none());
}

#[test]
fn a_reader_may_refuse_crash_or_hang() {
    let refused = read(r"printf 'no \033[31mkernel'; exit 1").unwrap_err();
    assert_eq!(refused.to_string(), "no ?[31mkernel");
    let long = read("/usr/bin/head -c 100000 /dev/zero; exit 1").unwrap_err();
    assert_eq!(long.to_string().len() as u64, MAX_REASON);
    for script in ["kill -ABRT $$", "kill -SEGV $$", "exit 101"] {
        let error = read(script).unwrap_err();
        assert!(matches!(error, ImageError::Crashed(_)), "{error}");
    }
    let begun = std::time::Instant::now();
    let error = read("exec /bin/sleep 60").unwrap_err();
    assert!(matches!(error, ImageError::Slow), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(30));
    let missing = Command::new("/nowhere/reader");
    let error = read_by(missing, tempfile::tempfile().unwrap(), PATIENCE).unwrap_err();
    assert!(matches!(error, ImageError::Process(_)), "{error}");
}

/// Nothing runs yet that the event loop would keep from anything, but the API waits as well.
#[test]
fn a_look_that_takes_long_is_left_to_the_start_and_no_other_failure_is() {
    looked(read("exec /bin/sleep 60")).unwrap();
    looked(read("exit 0")).unwrap();
    for script in ["exit 1", "exit 101", "kill -ABRT $$"] {
        looked(read(script)).unwrap_err();
    }
}

/// With the patience of a start the reader would come to its failure.
#[test]
fn a_look_has_little_patience() {
    let image = Image(tempfile::tempfile().unwrap());
    image.look(shell("/bin/sleep 15; exit 101")).unwrap();
}

/// As one whose storage gives no answer does not end, although it was killed.
#[test]
fn nobody_waits_for_a_reader_that_does_not_end_and_it_is_no_zombie_when_it_has() {
    let mut child = Command::new("/bin/cat")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let storage = child.stdin.take().unwrap();
    let process = format!("/proc/{}", child.id());
    reap(child);
    drop(storage);
    while std::path::Path::new(&process).exists() {
        std::thread::sleep(LOOK);
    }
}

#[test]
fn what_is_no_image_is_left_to_others_and_a_partition_table_is_told() {
    for len in [0, 100, 2047, 2048, 1 << 20] {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        assert!(in_file(file).unwrap().is_err(), "{len}");
    }
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    file.write_all_at(GPT, 512).unwrap();
    assert!(matches!(in_file(file), Err(ImageError::Partitions)));
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    file.write_all_at(&MAGIC.1, (SUPERBLOCK + MAGIC.0) as u64)
        .unwrap();
    assert!(in_file(file).unwrap().is_ok());
}

#[test]
fn a_reader_has_three_descriptors() {
    use crate::events::EventSender;
    use crate::virtio::VirtioEvents;

    let _events = EventSender::new().unwrap();
    let _loop = event_manager::EventManager::<Box<dyn event_manager::MutEventSubscriber>>::new();
    let _virtio = VirtioEvents::new().unwrap();
    let cloexec = vmm_sys_util::eventfd::EFD_CLOEXEC;
    let _commands = vmm_sys_util::eventfd::EventFd::new(cloexec).unwrap();
    // Descriptors of other tests, and of who runs them, may be there: none is an eventfd or an epoll.
    let found = read("for fd in /proc/self/fd/*; do readlink $fd; done; true").unwrap();
    let found = text(found.kernel);
    assert!(found.contains("memfd:vmgenie-kernel"), "{found}");
    for kind in ["eventfd", "eventpoll", "signalfd", "timerfd"] {
        assert!(!found.contains(kind), "{found}");
    }
}
