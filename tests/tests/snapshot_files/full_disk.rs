//! Snapshots on a disk that has no room for them.

use std::fs;

use serde_json::json;
use vmgenie_tests::Vm;
use vmgenie_tests::http::{call, done, ok, refused};
use vmgenie_tests::small_disk::small_disk;
use vmgenie_tests::tiny::{self, Memory};

#[test]
fn a_full_disk_leaves_the_old_snapshot_whole_and_no_rubbish() {
    // Room for a snapshot of a machine that has touched 1 MiB; not for one of 4 MiB beside it.
    let disk = small_disk(c"size=3m,mode=700");
    let (state, memory) = (disk.path().join("state"), disk.path().join("memory"));
    let create = json!({"snapshot_path": state, "mem_file_path": memory}).to_string();
    let mut old = tiny::boot("touch=1");
    old.client.pause().unwrap();
    done(&mut old.client, "PUT /snapshot/create", create.clone());
    let whole = (fs::read(&state).unwrap(), fs::read(&memory).unwrap());

    let mut big = tiny::boot("touch=4");
    big.client.pause().unwrap();
    for _ in 0..3 {
        let message = refused(&mut big.client, "PUT /snapshot/create", create.clone());
        assert!(message.contains("No space left on device"), "{message}");
        assert!(
            message.contains(memory.to_str().unwrap()),
            "it names the file: {message}"
        );
        assert!(whole == (fs::read(&state).unwrap(), fs::read(&memory).unwrap()));
        assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 2);
    }
    assert_eq!(ok(&mut big.client, "GET /", "")["state"], "Paused");
    big.client.resume().unwrap();

    // There is room again.
    fs::remove_file(&memory).unwrap();
    fs::remove_file(&state).unwrap();
    let mut small = tiny::boot("touch=2");
    small.client.pause().unwrap();
    done(&mut small.client, "PUT /snapshot/create", create);
    let mut clone = Vm::empty();
    let load = json!({"snapshot_path": state, "mem_file_path": memory, "resume_vm": true});
    done(&mut clone.client, "PUT /snapshot/load", load.to_string());
    assert_eq!(Memory::of(&clone.snapshot()).touched_mib(), 2);
}

#[test]
fn at_each_size_around_the_end_of_the_disk_there_is_a_whole_snapshot() {
    let disk = small_disk(c"size=2m,mode=700");
    let (state, memory) = (disk.path().join("state"), disk.path().join("memory"));
    let create = json!({"snapshot_path": state, "mem_file_path": memory}).to_string();
    let mut vm = tiny::boot("touch=1");
    vm.client.pause().unwrap();
    let mut outcomes = [0, 0];
    // A file that leaves less and less room.
    let filler = fs::File::create(disk.path().join("filler")).unwrap();
    for pages in (0..=250_usize).step_by(10) {
        fs::remove_file(&state).ok();
        fs::remove_file(&memory).ok();
        std::os::unix::fs::FileExt::write_all_at(&filler, &vec![1; pages * 4096], 0).unwrap();
        let (status, json) = call(&mut vm.client, "PUT /snapshot/create", create.clone());
        outcomes[usize::from(status == 204)] += 1;
        let files = fs::read_dir(disk.path()).unwrap().count();
        match status {
            204 => assert_eq!(files, 3),
            _ => {
                let message = json["fault_message"].as_str().unwrap();
                assert!(message.contains("No space left on device"), "{message}");
                assert_eq!(files, 1, "only the filler is left");
            }
        }
    }
    println!("{} times full, {} times not", outcomes[0], outcomes[1]);
    assert!(outcomes[0] > 0 && outcomes[1] > 0, "{outcomes:?}");
    drop(filler);
    fs::remove_file(disk.path().join("filler")).unwrap();
    done(&mut vm.client, "PUT /snapshot/create", create);
    let mut clone = Vm::empty();
    let load = json!({"snapshot_path": state, "mem_file_path": memory, "generation": "keep"});
    done(&mut clone.client, "PUT /snapshot/load", load.to_string());
    assert_eq!(tiny::generation(&mut clone), tiny::generation(&mut vm));
}
