//! A service that systemd ends when it has been silent for five seconds.

use vmgenie_tests::Vm;

/// The service. One process sends all that it says: in an emulated guest a program of its own for each beat may take seconds.
const PROGRAM: &str = "use Socket; \
    socket(my $to, AF_UNIX, SOCK_DGRAM, 0) or die; \
    connect($to, sockaddr_un($ENV{NOTIFY_SOCKET})) or die; \
    send($to, \"READY=1\", 0) or die; \
    while (1) { send($to, \"WATCHDOG=1\", 0) or die; sleep 1; }";
const UNIT: &[&str] = &[
    "[Service]",
    "Type=notify",
    "WatchdogSec=5",
    "ExecStart=/usr/bin/perl /run/watched.pl",
];
/// What a service that has been ended or started again has otherwise.
const SHOWN: &str =
    "systemctl show --property=MainPID,ActiveState,Result,NRestarts watched.service";

/// Starts the service in the guest; what systemd says of it.
pub(crate) fn start(vm: &mut Vm) -> String {
    vm.shell(&format!("printf '%s\\n' '{PROGRAM}' > /run/watched.pl"));
    let unit = UNIT.join("' '");
    vm.shell("mkdir -p /run/systemd/system");
    vm.shell(&format!(
        "printf '%s\\n' '{unit}' > /run/systemd/system/watched.service"
    ));
    vm.shell("systemctl start watched.service");
    let shown = shown(vm);
    for line in ["ActiveState=active", "Result=success", "NRestarts=0"] {
        assert!(shown.lines().any(|shown| shown == line), "{shown}");
    }
    assert!(!shown.lines().any(|line| line == "MainPID=0"), "{shown}");
    shown
}

/// What systemd says of the service.
pub(crate) fn shown(vm: &mut Vm) -> String {
    vm.shell(SHOWN)
}
