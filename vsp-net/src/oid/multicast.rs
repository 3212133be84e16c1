//! The list of groups.

use super::Mac;

/// Most groups; what Hyper-V's own NICs have.
pub const MAX_MULTICAST: usize = 32;

/// Groups that the guest wants frames of, none of them twice.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Multicast {
    list: [Mac; MAX_MULTICAST],
    len: usize,
}

impl Multicast {
    /// The groups.
    pub fn as_slice(&self) -> &[Mac] {
        &self.list[..self.len]
    }

    /// Whether a group is in it.
    pub fn contains(&self, group: &Mac) -> bool {
        self.as_slice().contains(group)
    }

    /// Adds a group. False: there is no room.
    pub(super) fn add(&mut self, group: &Mac) -> bool {
        if self.contains(group) {
            return true;
        }
        let Some(place) = self.list.get_mut(self.len) else { return false };
        *place = *group;
        self.len += 1;
        true
    }

    /// Removes a group. False: it is not there.
    pub(super) fn remove(&mut self, group: &Mac) -> bool {
        let Some(at) = self.as_slice().iter().position(|there| there == group) else { return false };
        self.list.copy_within(at + 1..self.len, at);
        self.len -= 1;
        self.list[self.len] = Mac::default();
        true
    }

    /// The groups in a row of addresses; `None` if there are too many of them.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Multicast> {
        let mut all = Multicast::default();
        bytes.as_chunks::<6>().0.iter().all(|group| all.add(group)).then_some(all)
    }
}

impl std::fmt::Debug for Multicast {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.as_slice()).finish()
    }
}
