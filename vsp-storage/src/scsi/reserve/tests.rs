use super::*;

const A: Nexus = Nexus(1);
const B: Nexus = Nexus(2);
const C: Nexus = Nexus(3);

fn out(
    registry: &mut Registry,
    from: Nexus,
    action: Action,
    key: u64,
    new_key: u64,
) -> Result<Notices, Refusal> {
    registry.apply(from, &Request { action, key, new_key })
}

/// A registry where A, B and C are registered with their own numbers times ten.
fn registered() -> Registry {
    let mut registry = Registry::default();
    for nexus in [A, B, C] {
        assert_eq!(out(&mut registry, nexus, Action::Register, 0, nexus.0 * 10), Ok(vec![]));
    }
    assert_eq!(registry.generation, 3);
    registry
}

fn reserved(kind: Kind) -> Registry {
    let mut registry = registered();
    assert_eq!(out(&mut registry, A, Action::Reserve(kind), 10, 0), Ok(vec![]));
    registry
}

#[test]
fn keys_have_to_be_known_unless_they_are_ignored() {
    let mut registry = registered();
    assert_eq!(out(&mut registry, A, Action::Register, 11, 12), Err(Refusal::Conflict));
    assert_eq!(out(&mut registry, A, Action::Register, 0, 12), Err(Refusal::Conflict), "not new");
    assert_eq!(out(&mut registry, Nexus(9), Action::Register, 10, 12), Err(Refusal::Conflict), "not known");
    assert_eq!(out(&mut registry, A, Action::RegisterAnyway, 99, 12), Ok(vec![]));
    assert_eq!(registry.key_of(A), Some(12));
    assert_eq!(out(&mut registry, A, Action::Register, 12, 0), Ok(vec![]));
    assert_eq!((registry.key_of(A), registry.generation), (None, 5));
    assert_eq!(out(&mut registry, A, Action::Register, 0, 0), Ok(vec![]));
    assert_eq!(registry.generation, 5, "nothing was forgotten");
}

#[test]
fn only_so_many_are_remembered() {
    let mut registry = Registry::default();
    for number in 0..MAX_REGISTRANTS as u64 {
        assert!(out(&mut registry, Nexus(number), Action::Register, 0, 1).is_ok());
    }
    let more = out(&mut registry, Nexus(99), Action::Register, 0, 1);
    assert_eq!(more, Err(Refusal::Check(Sense::NO_REGISTRATION_LEFT)));
}

#[test]
fn each_kind_lets_others_do_what_it_says() {
    const STRANGER: Nexus = Nexus(9);
    // What a registrant and a stranger may do, reading and writing.
    let table = [
        (Kind::WriteExclusive, (true, false), (true, false)),
        (Kind::ExclusiveAccess, (false, false), (false, false)),
        (Kind::WriteExclusiveRegistrants, (true, true), (true, false)),
        (Kind::ExclusiveAccessRegistrants, (true, true), (false, false)),
        (Kind::WriteExclusiveAll, (true, true), (true, false)),
        (Kind::ExclusiveAccessAll, (true, true), (false, false)),
    ];
    for (kind, registrant, stranger) in table {
        let registry = reserved(kind);
        let may = |who| (registry.allows(who, Access::Read), registry.allows(who, Access::Write));
        assert_eq!((may(A), may(B), may(STRANGER)), ((true, true), registrant, stranger), "{kind:?}");
        assert!(registry.allows(STRANGER, Access::Free));
    }
    assert!(registered().allows(STRANGER, Access::Write));
}

#[test]
fn a_reservation_is_made_once_and_given_up_by_its_holder() {
    for kind in Kind::ALL {
        let mut registry = reserved(kind);
        let others = out(&mut registry, B, Action::Reserve(kind), 20, 0);
        assert_eq!(others.is_ok(), kind.is_for_all());
        assert_eq!(out(&mut registry, A, Action::Reserve(kind), 10, 0), Ok(vec![]), "again is no change");
        let other_kind = if kind as u8 == 1 { Kind::ExclusiveAccess } else { Kind::WriteExclusive };
        assert_eq!(out(&mut registry, A, Action::Reserve(other_kind), 10, 0), Err(Refusal::Conflict));
        let wrong = out(&mut registry, A, Action::Release(other_kind), 10, 0);
        assert_eq!(wrong, Err(Refusal::Check(Sense::INVALID_RELEASE)));
        assert_eq!(out(&mut registry, A, Action::Release(kind), 11, 0), Err(Refusal::Conflict));
        let told = out(&mut registry, A, Action::Release(kind), 10, 0).unwrap();
        assert_eq!(told.len(), if kind.is_for_registrants() { 2 } else { 0 });
        assert_eq!((registry.reservation, registry.generation), (None, 3));
    }
    let mut registry = reserved(Kind::WriteExclusive);
    assert_eq!(out(&mut registry, B, Action::Release(Kind::WriteExclusive), 20, 0), Ok(vec![]));
    assert!(registry.reservation.is_some(), "it was not theirs");
}

#[test]
fn a_reservation_ends_with_its_holder() {
    let mut registry = reserved(Kind::WriteExclusiveRegistrants);
    let told = out(&mut registry, A, Action::Register, 10, 0).unwrap();
    assert_eq!(told, [(B, Attention::ReservationsReleased), (C, Attention::ReservationsReleased)]);
    assert_eq!(registry.reservation, None);

    let mut registry = reserved(Kind::WriteExclusiveAll);
    for nexus in [A, B] {
        assert_eq!(out(&mut registry, nexus, Action::Register, nexus.0 * 10, 0), Ok(vec![]));
        assert!(registry.reservation.is_some(), "others hold it still");
    }
    assert_eq!(out(&mut registry, C, Action::Register, 30, 0), Ok(vec![]));
    assert_eq!(registry.reservation, None);
}

#[test]
fn everything_is_cleared_and_the_others_are_told() {
    let mut registry = reserved(Kind::ExclusiveAccess);
    assert_eq!(out(&mut registry, B, Action::Clear, 10, 0), Err(Refusal::Conflict));
    let told = out(&mut registry, B, Action::Clear, 20, 0).unwrap();
    assert_eq!(told, [(A, Attention::ReservationsPreempted), (C, Attention::ReservationsPreempted)]);
    assert_eq!((registry.registrants.len(), registry.reservation, registry.generation), (0, None, 4));
}

#[test]
fn a_holder_is_preempted() {
    let mut registry = reserved(Kind::WriteExclusiveRegistrants);
    let preempt = Action::Preempt(Kind::ExclusiveAccess);
    let told = out(&mut registry, B, preempt, 20, 10).unwrap();
    assert_eq!(told, [(A, Attention::RegistrationsPreempted), (C, Attention::ReservationsReleased)]);
    assert_eq!(registry.reservation, Some(Reservation { kind: Kind::ExclusiveAccess, holder: B }));
    assert_eq!((registry.key_of(A), registry.generation), (None, 4));
}

#[test]
fn a_registration_is_preempted_and_the_reservation_stays() {
    let mut registry = reserved(Kind::WriteExclusive);
    let preempt = Action::Preempt(Kind::ExclusiveAccess);
    assert_eq!(out(&mut registry, B, preempt, 20, 30), Ok(vec![(C, Attention::RegistrationsPreempted)]));
    assert_eq!(registry.reservation, Some(Reservation { kind: Kind::WriteExclusive, holder: A }));
    assert_eq!(out(&mut registry, B, preempt, 20, 77), Err(Refusal::Conflict), "nobody has that key");
    let nobody = out(&mut registry, B, preempt, 20, 0);
    assert_eq!(nobody, Err(Refusal::Check(Sense::in_list(8))));
}

#[test]
fn one_of_all_holders_preempts_the_others() {
    let mut registry = reserved(Kind::WriteExclusiveAll);
    let told = out(&mut registry, B, Action::Preempt(Kind::WriteExclusive), 20, 0).unwrap();
    assert_eq!(told.len(), 2);
    assert_eq!(registry.registrants, [Registrant { nexus: B, key: 20 }]);
    assert_eq!(registry.reservation, Some(Reservation { kind: Kind::WriteExclusive, holder: B }));
}

#[test]
fn nobody_is_there_to_move_to() {
    let mut registry = reserved(Kind::WriteExclusive);
    assert_eq!(out(&mut registry, B, Action::Move, 20, 5), Err(Refusal::Conflict));
    assert_eq!(out(&mut registry, A, Action::Move, 10, 5), Err(Refusal::Check(Sense::in_list(24))));
}

#[test]
fn lists_are_checked() {
    let mut list = [0; 24];
    (list[7], list[15]) = (1, 2);
    let parse = |action, list: &[u8]| Request::parse(action, list);
    let register = Request { action: Action::Register, key: 1, new_key: 2 };
    assert_eq!(parse(Action::Register, &list), Ok(register));
    assert_eq!(parse(Action::Register, &list[..23]), Err(Sense::PARAMETER_LENGTH));
    assert_eq!(parse(Action::Clear, &[list, list].concat()), Err(Sense::PARAMETER_LENGTH));
    list[20] = 1;
    assert_eq!(parse(Action::Register, &list), Err(Sense::in_list(20)), "APTPL");
    assert!(parse(Action::Clear, &list).is_ok(), "there it means nothing");
    list[20] = 8;
    assert_eq!(parse(Action::RegisterAnyway, &list), Err(Sense::in_list(20)), "SPEC_I_PT");
    assert_eq!(Action::parse(1, 0x13), Err(Sense::in_cdb(2)), "a scope that there is not");
    assert_eq!(Action::parse(1, 2), Err(Sense::in_cdb(2)), "a kind that there is not");
    assert_eq!(Action::parse(8, 1), Err(Sense::in_cdb(1)));
    let mut list = vec![0; 48];
    (list[15], list[23]) = (2, 24);
    assert!(parse(Action::Move, &list).is_ok());
    list[23] = 20;
    assert_eq!(parse(Action::Move, &list), Err(Sense::PARAMETER_LENGTH));
}

#[test]
fn what_is_reported() {
    let registry = reserved(Kind::WriteExclusiveRegistrants);
    let keys = report(&registry, 0).unwrap();
    assert_eq!((keys.len(), keys[3], keys[7], keys[15], keys[31]), (32, 3, 24, 10, 30));
    let held = report(&registry, 1).unwrap();
    assert_eq!((held.len(), held[7], held[15], held[21]), (24, 16, 10, 5));
    assert_eq!(report(&registered(), 1).unwrap()[4..], [0; 4]);
    assert_eq!(report(&reserved(Kind::ExclusiveAccessAll), 1).unwrap()[8..16], [0; 8], "no one's key");
    assert_eq!(report(&registry, 2).unwrap(), [0, 8, 4, 0x90, 0xEA, 1, 0, 0]);
    let full = report(&registry, 3).unwrap();
    assert_eq!((full.len(), full[7]), (8 + 3 * 48, 144));
    assert_eq!((full[15], full[20], full[21], full[27], full[31]), (10, 1, 5, 1, 24));
    assert_eq!(full[56 + 12], 0, "B holds nothing");
    assert_eq!(report(&registry, 4), Err(Sense::in_cdb(1)));
}

#[test]
fn it_comes_back_from_the_ledger() {
    for registry in [Registry::default(), registered(), reserved(Kind::ExclusiveAccessAll)] {
        let mut bytes = Vec::new();
        registry.encode(&mut bytes);
        let mut reader = Reader(&bytes);
        assert_eq!(Registry::decode(&mut reader), Some(registry));
        assert!(reader.0.is_empty());
        for cut in 0..bytes.len() {
            assert_eq!(Registry::decode(&mut Reader(&bytes[..cut])), None);
        }
    }
    let mut bytes = vec![0; 400];
    bytes[5] = 9;
    assert_eq!(Registry::decode(&mut Reader(&bytes)), None, "too many");
    (bytes[4], bytes[5]) = (2, 0);
    assert_eq!(Registry::decode(&mut Reader(&bytes)), None, "of no kind");
}
