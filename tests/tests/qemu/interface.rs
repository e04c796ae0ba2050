//! The modules on QEMU without a restore: which part they take, and every call and errno.

use std::time::Duration;

use vmgenie_tests::qemu::INSTANCE;
use vmgenie_tests::shell::{generation, load_modules, no_complaints, start, told};
use vmgenie_tests::{Guest, Qemu, Shell};

/// How long all checks may take.
const ALL: Duration = Duration::from_secs(180);

fn log(qemu: &mut Qemu) -> String {
    qemu.shell("dmesg | grep sysgenid || true")
}

fn conforms(guest: Guest, abi: &str) {
    let mut qemu = Qemu::boot(guest, 1);
    load_modules(&mut qemu, &format!("abi={abi}"));
    let text = log(&mut qemu);
    assert!(
        text.contains("riding along with the kernel's vmgenid driver"),
        "{text}"
    );
    let command = format!(
        "sysgenid-test --abi {abi} all --seconds 2 --times 1000 && sysgenid-test --abi {abi} overflow"
    );
    let (status, lines) = qemu.run_within(&command, ALL);
    assert_eq!(status, 0, "{lines}");
    assert!(!lines.contains("FAIL"), "{lines}");
    let passed = lines.lines().filter(|line| line.starts_with("ok ")).count();
    assert_eq!(passed, 23, "{lines}");
    qemu.shell("rmmod sysgenid_vmgenid && rmmod sysgenid");
    no_complaints(&mut qemu);
}

#[test]
fn the_small_kernels_device_keeps_its_word_on_qemu() {
    conforms(Guest::Small, "5");
}

#[test]
fn the_stock_kernels_device_keeps_the_word_of_deployed_drivers_on_qemu() {
    conforms(Guest::Debian, "8");
}

#[test]
fn on_qemu_it_drives_the_device_where_the_kernels_driver_is_absent() {
    let mut qemu = Qemu::boot_with(Guest::Small, 1, "module_blacklist=vmgenid");
    load_modules(&mut qemu, "");
    let text = log(&mut qemu);
    assert!(text.contains("driving the VMGENID device"), "{text}");
    start(&mut qemu, "sysgenid-test notice");
    let frozen = qemu.snapshot();
    drop(qemu);
    let mut clone = Qemu::restore(&frozen);
    let text = told(&mut clone, "ok notice");
    assert!(text.contains("read Ok(2)\n"), "{text}");
    let reseeds = clone.shell("dmesg | grep -c 'crng reseeded due to virtual machine fork'");
    // In the new generation; when the driver was loaded, no fork was announced.
    assert_eq!(reseeds.trim(), "1");
    no_complaints(&mut clone);
}

#[test]
fn where_there_is_no_vmgenid_device_the_modules_load_and_say_so() {
    let mut qemu = Qemu::boot_without_vmgenid(Guest::Debian);
    load_modules(&mut qemu, "");
    let text = log(&mut qemu);
    assert!(
        text.contains("no VMGENID device: the generation moves by request alone"),
        "{text}"
    );
    qemu.shell("sysgenctl trigger");
    assert_eq!(generation(&mut qemu), 1);
    qemu.shell("rmmod sysgenid_vmgenid && rmmod sysgenid");
    no_complaints(&mut qemu);
}

#[test]
fn a_guest_reads_on_qemu_who_it_is_as_on_vmgenie() {
    let mut qemu = Qemu::boot(Guest::Small, 1);
    assert_eq!(qemu.shell("sysgenctl data"), format!("{INSTANCE}\n"));
}
