//! The KVM that the other tests run on.

use kvm_ioctls::Kvm;

#[test]
fn the_kvm_of_this_host_answers_api_version_12() {
    assert_eq!(Kvm::new().unwrap().get_api_version(), 12);
}
