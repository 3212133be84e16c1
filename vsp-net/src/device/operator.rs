//! What an operator says to a NIC that serves, and its answers: JSON, carried unread by the core.
//!
//! It comes from the host's side, and from a build that may be another: what is not known is left out.

use serde::{Deserialize, Serialize};
use vsp::{Channels, Control};

use super::Net;
use super::stats::Stats;

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Wanted {
    /// The link, as if a cable were put in or taken out.
    Link(Link),
    /// Nothing passes: frames for the guest wait, the guest's own are lost. The guest is not told.
    Pause {},
    /// Things pass again.
    Resume {},
    /// What the NIC has done; answered by a [`Report`].
    Stats {},
}

/// Of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Link {
    Up,
    Down,
}

/// The answer to [`Wanted::Stats`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Report {
    mac: String,
    link: Link,
    paused: bool,
    mtu: u32,
    queues: u16,
    channels: usize,
    /// Blocks of the receive buffer that the guest has.
    lent: usize,
    rx_packets: u64,
    rx_bytes: u64,
    rx_drops: u64,
    tx_packets: u64,
    tx_bytes: u64,
    tx_drops: u64,
    #[serde(flatten)]
    stats: Stats,
}

impl Net {
    /// Does what is wanted, and answers.
    pub(super) fn wanted(&mut self, control: Control, channels: &mut Channels) {
        let result = match serde_json::from_str(&control.payload) {
            Ok(wanted) => Ok(self.carry_out(&wanted, channels)),
            Err(error) => Err(format!("this build of vsp-net does not understand that: {error}")),
        };
        control.answer(channels, result);
    }

    fn carry_out(&mut self, wanted: &Wanted, channels: &mut Channels) -> String {
        match wanted {
            Wanted::Stats {} => return json(&self.report()),
            Wanted::Link(link) => {
                let up = *link == Link::Up;
                // Later processes of this device are started with it.
                self.setting.link_up = up;
                if self.state.nic.link_up != up {
                    self.state.nic.link_up = up;
                    (self.stale, self.owes_link) = (true, true);
                    self.receive.readable(None);
                    self.answer_questions(channels);
                }
            }
            Wanted::Pause {} => (self.state.paused, self.stale) = (true, true),
            Wanted::Resume {} => {
                (self.state.paused, self.stale) = (false, true);
                self.receive.readable(None);
            }
        }
        "{}".into()
    }

    fn report(&self) -> Report {
        let nic = &self.state.nic;
        let (receive, transmit) = (&nic.statistics.receive, &nic.statistics.transmit);
        Report {
            mac: nic.mac.map(|byte| format!("{byte:02x}")).join(":"),
            link: if nic.link_up { Link::Up } else { Link::Down },
            paused: self.state.paused,
            mtu: nic.mtu,
            queues: self.backend.queues() as u16,
            channels: self.ports.open(),
            lent: self.receive.blocks.out(),
            rx_packets: receive.frames(),
            rx_bytes: receive.bytes(),
            rx_drops: receive.discards + receive.errors,
            tx_packets: transmit.frames(),
            tx_bytes: transmit.bytes(),
            tx_drops: transmit.discards + transmit.errors,
            stats: self.stats,
        }
    }
}

fn json(value: &impl Serialize) -> String {
    // Numbers and strings can always be written.
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_comes_as_json() {
        let parse = |text| serde_json::from_str::<Wanted>(text);
        assert_eq!(parse(r#"{"link":"up"}"#).unwrap(), Wanted::Link(Link::Up));
        assert_eq!(parse(r#"{"link":"down"}"#).unwrap(), Wanted::Link(Link::Down));
        assert_eq!(parse(r#"{"pause":{}}"#).unwrap(), Wanted::Pause {});
        assert_eq!(parse(r#"{"resume":{"soon":true}}"#).unwrap(), Wanted::Resume {});
        assert_eq!(parse(r#"{"stats":{}}"#).unwrap(), Wanted::Stats {});
        assert!(parse(r#"{"defragment":{}}"#).is_err() && parse("").is_err());
    }
}
