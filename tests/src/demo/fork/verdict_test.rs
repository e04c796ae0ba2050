use serde_json::json;

use super::super::asking::Answer;
use super::*;

fn asked(name: &str, nonces: &[&str]) -> Asked {
    let answers = nonces.iter().map(|nonce| Answer {
        name: name.to_owned(),
        nonces: [format!("{nonce}k"), format!("{nonce}u")],
    });
    Asked {
        answers: answers.collect(),
        ..Asked::default()
    }
}

fn good() -> Facts {
    let clone = |number: u8| Clone {
        told: format!("clone-{number}"),
        asked: asked(&format!("clone-{number}"), &[&format!("n{number}")]),
    };
    let told = json!({ "name": "x", "ready": true, "missing": [] });
    Facts {
        forked: json!({ "original": { "how": "fork-point" }, "clones": [told, told, told] }),
        plain: Duration::from_millis(1),
        control: [&["c", "d"], &["c", "e"]].map(|nonces| asked(image::NAME, nonces)),
        original: asked(image::NAME, &["a", "b"]),
        clones: (1..=CLONES).map(clone).collect(),
    }
}

/// The one failure of these facts.
fn only(facts: &Facts) -> String {
    let failures = failures(facts);
    assert_eq!(failures.len(), 1, "{failures:#?}");
    failures[0].clone()
}

#[test]
fn machines_that_share_nothing_are_well() {
    assert_eq!(failures(&good()), Vec::<String>::new());
}

#[test]
fn a_nonce_of_two_answers_is_named_whoever_gave_them_and_whichever_it_is() {
    for which in [0, 1] {
        let mut facts = good();
        facts.clones[1].asked.answers[0].nonces[which] = "ak".to_owned();
        assert_eq!(
            only(&facts),
            "origin and clone-2 both answered with the nonce ak"
        );
        let mut facts = good();
        facts.clones[2].asked.answers[0].nonces[which] = "n1u".to_owned();
        assert_eq!(
            only(&facts),
            "clone-1 and clone-3 both answered with the nonce n1u"
        );
        let mut facts = good();
        facts.original.answers[1].nonces[which] = "au".to_owned();
        assert_eq!(
            only(&facts),
            "origin and origin both answered with the nonce au"
        );
    }
}

#[test]
fn an_answer_counts_once_and_a_control_that_shows_nothing_is_named() {
    let mut facts = good();
    assert_eq!(facts.control_repeated(), 1);
    facts.control[1] = asked(image::NAME, &["c", "d", "e"]);
    assert_eq!(facts.control_repeated(), 2);
    // Nobody else has given the control's nonces, and that would not matter.
    facts.original.answers[0].nonces[0] = "ck".to_owned();
    assert_eq!(failures(&facts), Vec::<String>::new());
    facts.control[1] = asked(image::NAME, &["f", "g"]);
    assert_eq!(facts.control_repeated(), 0);
    assert!(only(&facts).contains("proves nothing"));
}

#[test]
fn a_lost_request_and_an_answer_of_another_are_named() {
    let mut facts = good();
    facts.original.lost.push("reset".to_owned());
    assert_eq!(only(&facts), "the client of origin lost 1 requests: reset");
    let mut facts = good();
    let lost = ["reset", "refused"].map(str::to_owned);
    facts.clones[0].asked.lost.extend(lost);
    assert_eq!(only(&facts), "the client of clone-1 lost 2 requests: reset");
    let mut facts = good();
    facts.original.answers[1].name = "clone-1".to_owned();
    assert_eq!(only(&facts), "clone-1 answered for origin");
}

#[test]
fn a_fork_that_was_none_is_named() {
    let mut facts = good();
    facts.forked["original"] = json!({ "how": "plain", "cooperation": { "why_plain": "no" } });
    assert!(only(&facts).contains("did not take part: \"no\""));
    let mut facts = good();
    facts.forked["clones"][2]["ready"] = json!(false);
    assert!(only(&facts).contains("lacks"));
    let mut facts = good();
    facts.forked["clones"].as_array_mut().unwrap().pop();
    assert_eq!(only(&facts), "clones are missing");
}
