//! What requests that were refused leave of network interfaces: nothing.

use vmgenie_machine::config::{Cmdline, DeviceId, InterfaceName, NetConfig};

use super::*;

fn net(id: &str, tap: &str, mac: &str) -> Command {
    let net = NetConfig {
        id: DeviceId::new(id).unwrap(),
        host_dev_name: InterfaceName::new(tap).unwrap(),
        guest_mac: Some(mac.parse().unwrap()),
        mtu: None,
    };
    Command::SetDevice(net.into())
}

fn controller() -> Controller {
    let (events, _) = EventSender::new().unwrap();
    Controller::new(events, VirtioEvents::new().unwrap(), "test".to_owned()).unwrap()
}

fn refusal(controller: &mut Controller, command: Command) -> String {
    controller.execute(command).unwrap_err().to_string()
}

const MACS: [&str; 2] = ["06:00:00:00:00:01", "06:00:00:00:00:02"];

#[test]
fn an_interface_that_was_refused_leaves_its_name_its_tap_and_its_mac_to_others() {
    let mut controller = controller();
    // Every network namespace has it, and it is no tap.
    let refused = refusal(&mut controller, net("eth0", "lo", MACS[0]));
    assert!(refused.contains("no tap"), "{refused}");
    assert!(!controller.configured, "a snapshot may still be loaded");
    controller
        .execute(net("eth1", "vmg-test-1", MACS[0]))
        .unwrap();
    for wrong in [
        net("eth2", "vmg-test-2", MACS[0]),
        net("eth2", "vmg-test-1", MACS[1]),
    ] {
        refusal(&mut controller, wrong);
    }
    // One that is there stays as it was when another one for its place is refused.
    refusal(&mut controller, net("eth1", "lo", MACS[1]));
    assert_eq!(controller.devices.nets().len(), 1);
    assert_eq!(
        controller.devices.nets()[0].host_dev_name.as_str(),
        "vmg-test-1"
    );
    controller
        .execute(net("eth2", "vmg-test-2", MACS[1]))
        .unwrap();
}

#[test]
fn an_interface_of_a_start_that_failed_stays_and_is_replaced_by_its_name() {
    let mut controller = controller();
    let source = BootSource {
        kernel: "/dev/null".into(),
        initrd: None,
        cmdline: Cmdline::new("").unwrap(),
    };
    controller.boot_source = Some(source);
    controller
        .execute(net("eth0", "vmg-test-1", MACS[0]))
        .unwrap();
    refusal(&mut controller, Command::Start);
    controller.tidy_up();
    // It stays configured: another start can succeed when what was missing is there.
    let taken = refusal(&mut controller, net("eth1", "vmg-test-2", MACS[0]));
    assert!(taken.contains("already in use"), "{taken}");
    controller
        .execute(net("eth0", "vmg-test-2", MACS[1]))
        .unwrap();
    controller
        .execute(net("eth1", "vmg-test-1", MACS[0]))
        .unwrap();
    assert_eq!(controller.devices.nets().len(), 2);
}
