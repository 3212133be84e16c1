//! What operators want of devices.

use ipc::{
    event::Doorbell,
    message::{CONTROL_VERSION, MAX_CONTROL},
};

use super::*;

/// Channel 1 of "a" open, an operator there.
fn ready() -> (Rig, Peer, Peer, Peer) {
    let (mut rig, a, b) = Rig::running();
    rig.open(&a, 1, 1);
    let operator = rig.operator();
    (rig, a, b, operator)
}

fn wants(rig: &mut Rig, operator: &Peer, device: &str, payload: &str) {
    rig.asks(operator, &Request::Control { device: device.into(), payload: payload.into() });
}

fn asked(process: &Peer) -> (u64, String, Vec<OwnedFd>) {
    match told(process) {
        Some((ToVsp::Control { id, payload }, fds)) => (id, payload, fds),
        other => panic!("{other:?}"),
    }
}

fn done(id: u64, text: &str) -> ToCore {
    ToCore::ControlDone { id, result: Ok(text.into()) }
}

fn answered(operator: &Peer) -> Result<String, String> {
    match reply(operator) {
        Some(Reply::Control { device, result }) if device == "a" => result,
        other => panic!("{other:?}"),
    }
}

fn failed(operator: &Peer) -> String {
    loop {
        match reply(operator) {
            Some(Reply::Failed { reason, .. }) => break reason,
            Some(Reply::CutOff { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_wanted_goes_to_the_process_that_serves_and_its_answer_back() {
    let (mut rig, a, b, operator) = ready();
    let bell = Doorbell::new().unwrap();
    let request = Request::Control { device: "a".into(), payload: "sing \"it\"".into() };
    operator.send(&request, &[bell.as_fd()]).unwrap();
    rig.poll();
    let (id, payload, fds) = asked(&a);
    assert_eq!((payload.as_str(), fds.len()), ("sing \"it\"", 1));
    assert!(same(&fds[0], &bell.as_fd().try_clone_to_owned().unwrap()));
    assert_eq!((said(&b), reply(&operator)), (None, None));
    // What else this operator asks comes after it; others need not wait.
    let other = rig.operator();
    rig.asks(&operator, &Request::Devices {});
    rig.asks(&other, &Request::Devices {});
    assert!(reply(&operator).is_none() && matches!(reply(&other), Some(Reply::Devices(_))));
    rig.says(&a, &done(id, "la"));
    assert_eq!(answered(&operator), Ok("la".into()));
    rig.poll();
    assert!(matches!(reply(&operator), Some(Reply::Devices(_))));
    wants(&mut rig, &operator, "a", "again");
    let (next, ..) = asked(&a);
    assert!(next != id);
    rig.says(&a, &ToCore::ControlDone { id: next, result: Err("not\nnow".into()) });
    assert_eq!(answered(&operator), Err("notnow".into()));
    assert_eq!(rig.server.deadline(), None);
}

#[test]
fn what_cannot_be_passed_on_is_refused() {
    let (mut rig, a, _b, operator) = ready();
    wants(&mut rig, &operator, "c", "");
    assert!(failed(&operator).contains("no such device"));
    wants(&mut rig, &operator, "a", &"x".repeat(MAX_CONTROL + 1));
    assert!(failed(&operator).contains("too long"));
    let bell = Doorbell::new().unwrap();
    let request = Request::Control { device: "a".into(), payload: String::new() };
    operator.send(&request, &[bell.as_fd(); 5]).unwrap();
    rig.poll();
    assert!(failed(&operator).contains("too long"));
    assert_eq!(said(&a), None);
    drop(a);
    rig.poll();
    wants(&mut rig, &operator, "a", "x");
    assert!(failed(&operator).contains("no process serves"));
}

#[test]
fn a_process_of_an_older_build_is_not_asked_what_it_does_not_know() {
    let mut rig = Rig::new();
    let versions = Versions { min: 2, max: CONTROL_VERSION - 1 };
    let ToCore::Hello { device, offer, ledger, build, .. } = hello("a") else { panic!() };
    let old = rig.meet(&ToCore::Hello { versions, device, offer, ledger, build });
    assert!(matches!(said(&old), Some(ToVsp::Welcome { version: 2, .. })));
    rig.serve(&old, false);
    let operator = rig.operator();
    wants(&mut rig, &operator, "a", "x");
    assert!(failed(&operator).contains("too old") && said(&old).is_none());
}

#[test]
fn a_process_that_dies_or_hands_over_answers_nothing_any_more() {
    let (mut rig, a, _b, operator) = ready();
    wants(&mut rig, &operator, "a", "x");
    drop(a);
    rig.poll();
    assert!(failed(&operator).contains("went before it answered"));
    let a = rig.attach_again("a");
    asked_to_open(&a, 1);
    rig.answers(&a, 1, 0);
    let (spare, swapper) = (rig.arrive("a", true), rig.operator());
    wants(&mut rig, &operator, "a", "y");
    let (first, ..) = asked(&a);
    rig.asks(&swapper, &Request::Swap { device: "a".into(), wait_ms: 0 });
    assert_eq!(said(&a), Some(ToVsp::Quiesce {}));
    // Meanwhile nobody is asked anything; what is under way can still be answered.
    let other = rig.operator();
    wants(&mut rig, &other, "a", "z");
    assert!(failed(&other).contains("no process serves"));
    rig.says(&a, &done(first, "just in time"));
    assert_eq!(answered(&operator), Ok("just in time".into()));
    rig.says(&a, &ToCore::Quiesced {});
    assert_eq!(said(&spare), Some(ToVsp::Serve { predecessor: true }));
}

#[test]
fn a_process_that_does_not_answer_is_not_waited_for() {
    let (mut rig, a, _b, operator) = ready();
    wants(&mut rig, &operator, "a", "x");
    let (id, ..) = asked(&a);
    let deadline = rig.server.deadline().expect("it does not wait for ever");
    rig.server.tick(&rig.mock, deadline);
    assert!(failed(&operator).contains("does not answer"));
    assert_eq!(rig.server.deadline(), None);
    rig.says(&a, &done(id, "late"));
    assert!(!is_cut_off(&a) && reply(&operator).is_none());
}

#[test]
fn only_what_was_asked_is_answered_and_only_by_who_was() {
    let (mut rig, a, b, operator) = ready();
    wants(&mut rig, &operator, "a", "x");
    let (id, ..) = asked(&a);
    rig.says(&b, &done(id, "me! me!"));
    assert_eq!(reply(&operator), None);
    rig.says(&b, &done(id + 1, "what nobody has asked"));
    assert!(is_cut_off(&b) && matches!(reply(&operator), Some(Reply::CutOff { .. })));
    rig.says(&a, &done(id, &"x".repeat(MAX_CONTROL + 1)));
    assert!(is_cut_off(&a));
    assert!(failed(&operator).contains("went before it answered"));
}

#[test]
fn an_operator_that_has_left_is_no_trouble() {
    let (mut rig, a, _b, operator) = ready();
    wants(&mut rig, &operator, "a", "x");
    let (id, ..) = asked(&a);
    drop(operator);
    rig.says(&a, &done(id, "hello?"));
    let next = rig.operator();
    wants(&mut rig, &next, "a", "y");
    let (id, ..) = asked(&a);
    rig.says(&a, &done(id, "hello"));
    assert_eq!(answered(&next), Ok("hello".into()));
}
