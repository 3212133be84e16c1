//! What PERSISTENT RESERVE OUT asks for: the CDB's fields and the parameter list's (SPC-4 6.16).

use super::super::bytes::{be32, be64};
use super::super::sense::Sense;
use super::Kind;

/// Bytes of the parameter list of all actions but one.
pub const LIST: usize = 24;
/// Longest list that is taken: a TransportID of the longest kind fits.
pub const MAX_LIST: usize = 512;

/// Where the new key, or the one of those who are preempted, lies in the list.
pub const NEW_KEY: u16 = 8;
/// Where the flags lie in the list.
const FLAGS: u16 = 20;
/// Where the TransportID lies in the list of REGISTER AND MOVE.
pub const TRANSPORT_ID: u16 = 24;

/// A service action, with the kind of reservation where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// REGISTER.
    Register,
    /// RESERVE.
    Reserve(Kind),
    /// RELEASE.
    Release(Kind),
    /// CLEAR.
    Clear,
    /// PREEMPT, and PREEMPT AND ABORT: commands of those who are preempted would have to end, and there are none.
    Preempt(Kind),
    /// REGISTER AND IGNORE EXISTING KEY.
    RegisterAnyway,
    /// REGISTER AND MOVE.
    Move,
}

impl Action {
    /// Reads the CDB's fields: service action, and scope and kind. `Err` is what the guest is told.
    pub fn parse(number: u8, scope_and_kind: u8) -> Result<Action, Sense> {
        /// The byte of the CDB where scope and kind are.
        const SCOPE_AND_KIND: u16 = 2;
        // The whole unit is the only scope.
        let kind = || {
            let known = Kind::of(scope_and_kind & 0xF).filter(|_| scope_and_kind >> 4 == 0);
            known.ok_or(Sense::in_cdb(SCOPE_AND_KIND))
        };
        Ok(match number {
            0 => Action::Register,
            1 => Action::Reserve(kind()?),
            2 => Action::Release(kind()?),
            3 => Action::Clear,
            4 | 5 => Action::Preempt(kind()?),
            6 => Action::RegisterAnyway,
            7 => Action::Move,
            _ => return Err(Sense::in_cdb(1)),
        })
    }
}

/// A command, read and checked for form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What.
    pub action: Action,
    /// The sender's key.
    pub key: u64,
    /// The service action's key: a new one, or that of others.
    pub new_key: u64,
}

impl Request {
    /// Reads the parameter list. `Err` is what the guest is told.
    pub fn parse(action: Action, list: &[u8]) -> Result<Request, Sense> {
        let Some(head) = list.first_chunk::<LIST>() else { return Err(Sense::PARAMETER_LENGTH) };
        let request = Request { action, key: be64(head), new_key: be64(&head[8..]) };
        if action == Action::Move {
            return request.checked_move(head, list);
        }
        let (spec_i_pt, aptpl) = (head[20] & 8 != 0, head[20] & 1 != 0);
        match action {
            // Others cannot be registered (no SIP_C), and nothing outlives a loss of power (no PTPL_C). ALL_TG_PT is granted:
            // there is one target port.
            Action::Register | Action::RegisterAnyway if spec_i_pt || aptpl => Err(Sense::in_list(FLAGS)),
            _ if list.len() != LIST => Err(Sense::PARAMETER_LENGTH),
            _ => Ok(request),
        }
    }

    fn checked_move(self, head: &[u8; LIST], list: &[u8]) -> Result<Request, Sense> {
        let id = be32(&head[20..]) as usize;
        if id < 24 || !id.is_multiple_of(4) || list.len() != LIST + id {
            return Err(Sense::PARAMETER_LENGTH);
        }
        if self.new_key == 0 {
            return Err(Sense::in_list(NEW_KEY));
        }
        // APTPL.
        if head[17] & 1 != 0 {
            return Err(Sense::in_list(17));
        }
        Ok(self)
    }
}
