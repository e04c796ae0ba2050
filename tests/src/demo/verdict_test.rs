use super::*;

fn id(number: u8) -> GenerationId {
    GenerationId::from_bytes([number; 16])
}

fn clone(number: u8) -> Machine {
    Machine {
        name: format!("clone {number}"),
        host_id: id(number),
        boot_id: None,
        new_ids: vec![id(number)],
        log: vec!["[ 1.0] crng reseeded due to virtual machine fork".to_owned()],
        counter: 2,
        drawn: format!("{number:032x}"),
        times: Some(Times {
            restore: Duration::from_millis(2),
            noticed: Some(Duration::from_millis(90)),
            reseeded: Some(Duration::from_millis(3)),
            adapted: Some(Duration::from_millis(4)),
        }),
    }
}

fn good() -> Facts {
    Facts {
        kernel: "7.3".to_owned(),
        boot: Duration::from_secs(5),
        snapshot: Duration::from_millis(50),
        first_id: id(100),
        original: Machine {
            name: "original".to_owned(),
            host_id: id(100),
            boot_id: Some(id(100)),
            new_ids: Vec::new(),
            log: Vec::new(),
            counter: 0,
            drawn: format!("{:032x}", 100),
            times: None,
        },
        clones: vec![clone(1), clone(2), clone(3)],
    }
}

/// The one failure of these facts.
fn only(facts: &Facts) -> String {
    let failures = failures(facts);
    assert_eq!(failures.len(), 1, "{failures:#?}");
    failures[0].clone()
}

#[test]
fn four_machines_that_know_who_they_are_are_all_well() {
    assert_eq!(failures(&good()), Vec::<String>::new());
}

#[test]
fn a_repeated_id_is_named_with_both_who_have_it() {
    let mut facts = good();
    facts.clones[2].host_id = id(1);
    facts.clones[2].new_ids = vec![id(1)];
    assert!(only(&facts).starts_with("clone 1 and clone 3 both have the ID 01010101-"));
    let mut facts = good();
    facts.clones[1].host_id = id(100);
    facts.clones[1].new_ids = vec![id(100)];
    assert!(only(&facts).starts_with("original and clone 2 both have"));
}

#[test]
fn a_clone_that_noticed_nothing_is_named() {
    let mut facts = good();
    facts.clones[1].new_ids.clear();
    facts.clones[1].log.clear();
    assert_eq!(only(&facts), "the guest of clone 2 noticed nothing");
}

#[test]
fn a_clone_that_noticed_twice_is_named() {
    let mut facts = good();
    facts.clones[0].new_ids = vec![id(1), id(1)];
    assert!(only(&facts).starts_with("the guest of clone 1 did not notice exactly once"));
    let mut facts = good();
    let line = facts.clones[0].log[0].clone();
    facts.clones[0].log.push(line);
    assert!(only(&facts).contains("lines in its kernel log: 2"));
}

#[test]
fn a_clone_whose_log_is_silent_is_named() {
    let mut facts = good();
    facts.clones[0].log.clear();
    assert!(only(&facts).contains("lines in its kernel log: 0"));
}

#[test]
fn a_clone_that_read_another_id_is_named() {
    let mut facts = good();
    facts.clones[2].new_ids = vec![id(9)];
    assert!(only(&facts).starts_with("the guest of clone 3 read the ID 09090909-"));
}

#[test]
fn an_original_whose_id_changed_is_named() {
    let mut facts = good();
    facts.original.host_id = id(101);
    assert!(only(&facts).starts_with("the ID of the original changed from 64646464-"));
}

#[test]
fn an_original_that_noticed_something_is_named() {
    let mut facts = good();
    facts.original.log = vec!["reseeded".to_owned()];
    assert!(only(&facts).starts_with("the original has nothing to notice"));
}

#[test]
fn an_original_that_booted_with_another_id_is_named() {
    let mut facts = good();
    facts.original.boot_id = Some(id(7));
    assert!(only(&facts).starts_with("the original's guest booted with the ID 07070707-"));
}

#[test]
fn a_counter_that_moved_by_anything_but_two_is_named() {
    let mut facts = good();
    facts.clones[1].counter = 1;
    assert!(only(&facts).starts_with("the counter of clone 2 is 1:"));
}

#[test]
fn a_clone_that_has_not_adapted_is_named() {
    let mut facts = good();
    facts.clones[0].times.as_mut().unwrap().adapted = None;
    assert_eq!(only(&facts), "the guest of clone 1 has not adapted");
}

#[test]
fn bytes_that_were_drawn_twice_are_named() {
    let mut facts = good();
    facts.clones[2].drawn = facts.original.drawn.clone();
    assert!(only(&facts).ends_with("in original and in clone 3"));
}
