//! From a chain of the driver's to the backend: the header and the frame's own headers are copied, checked and sent from there; the rest goes
//! straight from where the guest has put it.

use vsp::ipc::shm::GuestBuffer;

use super::features::{Agreed, longest_plain};
use super::stats::Stats;
use super::{header, pieces};
use crate::backend::{Backend, LONGEST_FRAME, Sent, VnetHeader, broken};
use crate::cli::Setting;
use crate::offload::Headers;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Sent, dropped: it is not thought of again.
    Over,
    /// The backend does not take it for now.
    Later,
}

/// What sending takes.
pub(super) struct Sender<'a> {
    pub backend: &'a mut Backend,
    pub queue: usize,
    pub setting: &'a Setting,
    pub agreed: Agreed,
    pub stats: &'a mut Stats,
}

impl Sender<'_> {
    /// Sends what a chain has for us to read: a header, and a frame.
    pub fn send(&mut self, chain: &GuestBuffer) -> Fate {
        let (all, header_len) = (chain.held().iter().copied(), self.agreed.header_len());
        let mut header = [0; header::MOST];
        let len = chain.len().checked_sub(header_len).filter(|len| *len <= LONGEST_FRAME);
        let (Some(len), true) = (len, pieces::copy_out(all.clone(), &mut header[..header_len])) else {
            self.stats.frames.transmit.errors += 1;
            return Fate::Over;
        };
        if !self.setting.link_up {
            return self.dropped();
        }
        let frame = pieces::skip(all, header_len);
        let mut whole = true;
        let headers = Headers::copy(len, |into: &mut [u8]| whole = pieces::copy_out(frame.clone(), into));
        let addresses = headers.as_slice().as_chunks::<6>().0.first_chunk();
        let (Some([to, from]), true, Some(vnet)) = (addresses, whole, header.first_chunk()) else {
            return self.dropped();
        };
        if self.setting.antispoof && *from != self.setting.mac.0 {
            self.stats.spoofed += 1;
            return Fate::Over;
        }
        let Ok(vnet) = header::transmit(vnet, headers.as_slice(), len, self.agreed.transmit()) else {
            return self.dropped();
        };
        // Whatever is longer has to say how it is to be cut up.
        if vnet.gso_type == VnetHeader::GSO_NONE && len > longest_plain(self.setting.mtu) {
            return self.dropped();
        }
        let rest = pieces::skip(frame, headers.copied());
        match self.backend.send(self.queue, &vnet, headers.as_slice(), rest) {
            Ok(Sent::Whole) => {
                self.stats.frames.transmit.count(to, len);
                Fate::Over
            }
            Ok(Sent::Later) => Fate::Later,
            Ok(Sent::Dropped) => self.dropped(),
            Err(error) => broken(&error),
        }
    }

    fn dropped(&mut self) -> Fate {
        self.stats.frames.transmit.discards += 1;
        Fate::Over
    }
}
