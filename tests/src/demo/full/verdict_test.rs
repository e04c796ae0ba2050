use super::*;

fn page(name: &str, number: u8, id: &str) -> Page {
    Page::from(format!(
        "generation-id: {id}\ngeneration-counter: 2\nmachine-id: m{number}\nhostname: {name}\n\
         address: 10.77.0.{number}/24\nssh-host-key: k{number}\n"
    ))
}

fn machine(number: u8) -> Machine {
    let told = format!("clone-{number}");
    let id = format!("id{number}");
    Machine {
        name: format!("clone {number}"),
        page: page(&told, number, &id),
        told,
        host_id: id,
        times: Some((Duration::from_secs(1), Some(Duration::from_secs(2)))),
        records: 7,
        left_open: 0,
        downloaded: true,
    }
}

fn good() -> Facts {
    let page = page("origin", 9, "none since this machine booted");
    Facts {
        boot: Duration::from_secs(30),
        snapshot: Duration::from_secs(1),
        first_id: "id9".to_owned(),
        first_page: page.clone(),
        received: 1,
        flushed: 6,
        original: Machine {
            name: "original".to_owned(),
            told: "origin".to_owned(),
            host_id: "id9".to_owned(),
            page,
            times: None,
            records: 20,
            left_open: 0,
            downloaded: true,
        },
        clones: vec![machine(1), machine(2)],
    }
}

/// The one failure of these facts.
fn only(facts: &Facts) -> String {
    let failures = failures(facts);
    assert_eq!(failures.len(), 1, "{failures:#?}");
    failures[0].clone()
}

#[test]
fn machines_that_are_all_their_own_are_well() {
    assert_eq!(failures(&good()), Vec::<String>::new());
}

#[test]
fn what_two_machines_share_is_named_with_both() {
    let mut facts = good();
    facts.clones[1].page = Page::from(facts.clones[1].page.text().replace("m2", "m1"));
    assert_eq!(
        only(&facts),
        "clone 1 and clone 2 both have the machine-id m1"
    );
    let mut facts = good();
    facts.clones[0].page = Page::from(facts.clones[0].page.text().replace("k1", "k9"));
    assert_eq!(
        only(&facts),
        "original and clone 1 both have the ssh-host-key k9"
    );
}

#[test]
fn an_original_that_is_another_than_before_is_named() {
    let mut facts = good();
    facts.original.host_id = "id8".to_owned();
    assert!(only(&facts).starts_with("the original is another"));
}

#[test]
fn a_lost_record_and_a_broken_download_are_named() {
    let mut facts = good();
    facts.clones[0].records = 5;
    assert_eq!(only(&facts), "clone 1 has 5 of 6 records that were flushed");
    let mut facts = good();
    facts.original.downloaded = false;
    assert!(only(&facts).starts_with("the download from original"));
}

#[test]
fn a_clone_that_does_not_know_who_it_is_is_named() {
    let mut facts = good();
    facts.clones[1].page = Page::from(facts.clones[1].page.text().replace("id2", "id7"));
    assert_eq!(only(&facts), "clone 2 shows the generation ID id7, not id2");
    let mut facts = good();
    facts.clones[1].told = "clone-3".to_owned();
    assert!(only(&facts).starts_with("clone 2 was told to be clone-3"));
    let mut facts = good();
    facts.clones[1].times = Some((Duration::ZERO, None));
    assert_eq!(only(&facts), "clone 2 has not adapted");
    let mut facts = good();
    facts.clones[1].left_open = 1;
    assert!(only(&facts).starts_with("clone 2 still has 1 connections"));
}
