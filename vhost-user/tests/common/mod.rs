//! A device for tests: it holds requests until it is told to end them, and remembers what it has seen.

#![allow(clippy::unwrap_used, dead_code, reason = "tests may panic; not every file uses all of it")]

use std::cell::RefCell;
use std::rc::Rc;

use vhost_face::testing::{Bench, FrontEnd, GuestRing};
use vhost_face::{Chain, Face, Queues, Request};

/// What all processes of the device have seen.
pub type Seen = Rc<RefCell<Vec<u64>>>;

#[derive(Debug, Default)]
pub struct Holder {
    pub seen: Seen,
    pub held: Vec<Request>,
    /// Requests are ended in the turn in which they come, the newest first.
    pub eager: bool,
    pub rejected: u32,
}

impl Holder {
    pub fn eager(seen: &Seen) -> Holder {
        Holder { seen: Rc::clone(seen), eager: true, ..Holder::default() }
    }

    pub fn patient(seen: &Seen) -> Holder {
        Holder { seen: Rc::clone(seen), ..Holder::default() }
    }
}

impl Face for Holder {
    fn features(&self) -> u64 {
        1
    }

    fn queues(&self) -> u16 {
        2
    }

    fn config(&self, offset: usize, into: &mut [u8]) {
        into.iter_mut().zip(offset..).for_each(|(byte, at)| *byte = at as u8);
    }

    fn request(&mut self, chain: &Chain, request: Request, queues: &mut Queues) {
        let mut id = [0; 8];
        queues.ram().read(chain.readable()[0].gpa, &mut id).unwrap();
        self.seen.borrow_mut().push(u64::from_le_bytes(id));
        self.held.push(request);
    }

    fn reject(&mut self, _chain: &Chain, request: Request, queues: &mut Queues) {
        self.rejected += 1;
        request.complete(queues, 0);
    }

    fn submit(&mut self, queues: &mut Queues) {
        while let Some(request) = self.held.pop_if(|_| self.eager) {
            request.complete(queues, 8);
        }
    }

    fn disconnected(&mut self, queues: &mut Queues) {
        self.held.drain(..).for_each(|request| request.complete(queues, 0));
    }

    fn is_idle(&self) -> bool {
        self.held.is_empty()
    }
}

pub const RAM: u64 = 1 << 16;

/// Where the id of a request is.
pub fn place(id: u64) -> u64 {
    0x1000 + id % 64 * 8
}

/// Sends a request with this id.
pub fn send(ring: &mut GuestRing, front_end: &FrontEnd, id: u64) -> u16 {
    front_end.memory.write(place(id) as usize, &id.to_le_bytes());
    ring.send(&[(place(id), 8)], &[(0x3000, 8)])
}

pub fn bench(face: Holder) -> (Bench<Holder>, GuestRing) {
    let mut bench = Bench::new(face, FrontEnd::new(RAM));
    let ring = bench.start(0);
    (bench, ring)
}
