//! What a disk can do.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::json;
use vmgenie_tests::Guest;
use vmgenie_tests::disk::{self, Image, with};
use vmgenie_tests::shell::no_complaints;

/// What the guest says of a disk.
fn queue(vm: &mut vmgenie_tests::Vm, disk: &str, name: &str) -> String {
    let text = vm.shell(&format!("cat /sys/block/{disk}/queue/{name}"));
    text.trim().to_owned()
}

#[test]
fn a_file_system_on_a_disk_has_what_was_written_after_another_boot() {
    let image = Image::new(24);
    for engine in ["Async", "Sync"] {
        let drive = with(image.drive("data"), &json!({ "io_engine": engine }));
        let mut vm = disk::booted(Guest::Small, 2, &drive);
        vm.shell("mkdir -p /mnt && mke2fs /dev/vda && mount -t ext4 /dev/vda /mnt");
        vm.shell("dd if=/dev/urandom of=/mnt/file bs=1M count=16 && sync");
        let sum = vm.shell("sha256sum /mnt/file");
        no_complaints(&mut vm);
        vm.shell("umount /mnt");
        vm.kill();
        let mut vm = disk::boot(Guest::Small, 1, &[drive]);
        vm.shell("mkdir -p /mnt && mount -t ext4 /dev/vda /mnt");
        assert_eq!(vm.shell("sha256sum /mnt/file"), sum);
        no_complaints(&mut vm);
    }
}

#[test]
fn the_guest_sees_size_name_and_limits_of_two_disks() {
    let (data, more) = (Image::new(8), Image::new(3));
    // A rest that fills no sector is not seen.
    let file = fs::File::options().write(true).open(more.path()).unwrap();
    file.set_len((3 << 20) + 100).unwrap();
    let unsafe_one = with(more.drive("more"), &json!({ "cache_type": "Unsafe" }));
    let mut vm = disk::boot(Guest::Small, 1, &[data.drive("data"), unsafe_one]);
    for (disk, mib, id, cache) in [
        ("vda", 8, "data", "write back"),
        ("vdb", 3, "more", "write through"),
    ] {
        let text = vm.shell(&format!(
            "cat /sys/block/{disk}/size /sys/block/{disk}/serial"
        ));
        assert_eq!(text.trim(), format!("{}\n{id}", mib * 2048));
        assert_eq!(queue(&mut vm, disk, "write_cache"), cache);
        assert_eq!(queue(&mut vm, disk, "logical_block_size"), "512");
        assert_eq!(queue(&mut vm, disk, "physical_block_size"), "4096");
        assert_eq!(queue(&mut vm, disk, "max_segments"), "254");
        assert_eq!(
            queue(&mut vm, disk, "discard_max_bytes"),
            (1_u64 << 30).to_string()
        );
        assert_eq!(
            queue(&mut vm, disk, "write_zeroes_max_bytes"),
            (1_u64 << 24).to_string()
        );
    }
    // What goes to one does not go to the other.
    vm.shell("echo one | dd of=/dev/vda conv=fsync && echo two | dd of=/dev/vdb conv=fsync");
    assert!(data.bytes().starts_with(b"one\n"));
    assert!(more.bytes().starts_with(b"two\n"));
    no_complaints(&mut vm);
}

#[test]
fn a_read_only_disk_refuses_writes_and_stays_as_it_is() {
    let image = Image::new(4);
    fs::write(image.path(), vec![b'x'; 4 << 20]).unwrap();
    let drive = with(image.drive("data"), &json!({ "is_read_only": true }));
    let mut vm = disk::booted(Guest::Small, 1, &drive);
    assert_eq!(vm.shell("cat /sys/block/vda/ro").trim(), "1");
    assert_ne!(vm.run("echo no | dd of=/dev/vda conv=fsync").0, 0);
    assert_eq!(
        vm.shell("dd if=/dev/vda bs=1M 2>/dev/null | tr -d x | wc -c")
            .trim()
            .lines()
            .last(),
        Some("0")
    );
    assert!(image.bytes().iter().all(|byte| *byte == b'x'));
}

#[test]
fn a_discard_gives_space_back_to_the_host() {
    let image = Image::new(64);
    let mut vm = disk::booted(Guest::Small, 1, &image.drive("data"));
    vm.shell("dd if=/dev/urandom of=/dev/vda bs=1M count=48 conv=fsync");
    let used = || fs::metadata(image.path()).unwrap().blocks() * 512;
    let before = used();
    assert!(before >= 48 << 20, "{before}");
    vm.shell("blkdiscard -o 1048576 -l 33554432 /dev/vda");
    let freed = before - used();
    assert!(freed >= 31 << 20, "{freed}");
    let bytes = image.bytes();
    assert!(bytes[1 << 20..33 << 20].iter().all(|byte| *byte == 0));
    assert!(bytes[33 << 20..34 << 20].iter().any(|byte| *byte != 0));
    no_complaints(&mut vm);
}

#[test]
fn a_disk_works_again_after_its_driver_has_let_go_of_it() {
    let image = Image::new(24);
    let mut vm = disk::booted(Guest::Small, 1, &image.drive("data"));
    vm.shell("mkdir -p /mnt && mke2fs /dev/vda");
    for round in 0..3 {
        vm.shell(&format!(
            "mount -t ext4 /dev/vda /mnt && echo {round} > /mnt/round && umount /mnt"
        ));
        vm.shell("cd /sys/bus/virtio/drivers/virtio_blk && d=$(ls -d virtio*) && echo $d > unbind && ! test -e /dev/vda");
        vm.shell("cd /sys/bus/virtio/drivers/virtio_blk && echo $d > bind && test -e /dev/vda");
        let text = vm.shell("mount -t ext4 /dev/vda /mnt && cat /mnt/round && umount /mnt");
        assert_eq!(text.trim(), round.to_string());
    }
    no_complaints(&mut vm);
}

#[test]
fn a_stock_kernel_loads_its_driver_and_uses_the_disk() {
    let image = Image::new(32);
    let mut vm = disk::boot(Guest::Debian, 1, &[image.drive("data")]);
    vm.shell("insmod /modules/virtio_mmio.ko && insmod /modules/virtio_blk.ko");
    vm.shell("mkdir -p /mnt && mke2fs /dev/vda && mount -t ext4 /dev/vda /mnt");
    vm.shell("dd if=/dev/urandom of=/mnt/file bs=1M count=8 && sync");
    let sum = vm.shell("sha256sum /mnt/file");
    vm.shell("umount /mnt && rmmod virtio_blk && ! test -e /dev/vda");
    vm.shell("insmod /modules/virtio_blk.ko && mount -t ext4 /dev/vda /mnt");
    assert_eq!(vm.shell("sha256sum /mnt/file"), sum);
    no_complaints(&mut vm);
}

#[test]
fn a_guest_boots_from_its_root_drive() {
    let image = Image::new(24);
    let mut vm = disk::booted(Guest::Small, 1, &image.drive("data"));
    vm.shell("mkdir -p /mnt && mke2fs /dev/vda && mount -t ext4 /dev/vda /mnt");
    vm.shell("mkdir -p /mnt/bin /mnt/dev /mnt/proc && cp -a /bin/. /mnt/bin/");
    vm.shell("printf '#!/bin/sh\\nmount -t proc proc /proc\\necho from-the-disk\\ngrep -o root=.* /proc/cmdline\\nmount | grep \" / \"\\npoweroff -f\\n' > /mnt/init");
    vm.shell("chmod +x /mnt/init && umount /mnt && sync");
    vm.kill();

    let mut vm = vmgenie_tests::Vm::empty();
    let source = json!({
        "kernel_image_path": Guest::Small.kernel(),
        "boot_args": format!("{} rootfstype=ext4 init=/init", Guest::Small.cmdline()),
    });
    vmgenie_tests::http::done(&mut vm.client, "PUT /boot-source", source.to_string());
    let root = with(image.drive("root"), &json!({ "is_root_device": true }));
    let other = Image::new(1);
    // The root drive comes first, whenever it was added.
    disk::put_drives(&mut vm, &[other.drive("other"), root]);
    vm.client.start().unwrap();
    let (status, text) = vm.wait(crate::LIMIT);
    assert!(status.success(), "{text}");
    assert!(text.contains("from-the-disk"), "{text}");
    assert!(text.contains("root=/dev/vda"), "{text}");
}
