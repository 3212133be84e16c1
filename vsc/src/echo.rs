//! The consumer of the echo test device: each in-band packet is completed with its own payload.

use std::time::Duration;

use vmbus::message::Offer;
use vmbus::packet::{Outgoing, PacketType};

use crate::channel::Channel;
use crate::client::{Client, OpenOptions};
use crate::error::Error;
use crate::platform::Platform;

/// A connection to an echo device.
pub struct Echo<P: Platform> {
    channel: Channel<P>,
    next_id: u64,
}

impl<P: Platform> Echo<P> {
    /// Opens the device.
    pub fn open(client: &mut Client<P>, offer: &Offer, options: &OpenOptions) -> Result<Self, Error> {
        Ok(Self::new(client.open(offer, options)?))
    }

    /// Takes a channel to an echo device that is open already.
    pub fn new(channel: Channel<P>) -> Self {
        Self { channel, next_id: 1 }
    }

    /// Sends `payload` and checks that it comes back.
    pub fn echo(&mut self, payload: &[u8], timeout: Duration) -> Result<(), Error> {
        let id = self.send(payload, timeout)?;
        self.expect(id, payload, timeout)
    }

    /// Sends `payload`; returns the request's id.
    pub fn send(&mut self, payload: &[u8], timeout: Duration) -> Result<u64, Error> {
        let id = self.next_id;
        self.next_id += 1;
        self.channel.send_waiting(&Outgoing::in_band(id, true), &[payload], timeout)?;
        Ok(id)
    }

    /// Checks that the next packet completes request `id` with `payload`, padded with zeroes to 8 bytes.
    pub fn expect(&mut self, id: u64, payload: &[u8], timeout: Duration) -> Result<(), Error> {
        let packet = self.channel.receive(timeout)?.ok_or(Error::Timeout("echo"))?;
        if packet.header.packet_type != PacketType::COMPLETION || packet.header.transaction_id != id {
            return Err(Error::Protocol(format!("a completion of {id} was due, not {:?}", packet.header)));
        }
        match packet.payload().split_at_checked(payload.len()) {
            Some((echo, rest)) if echo == payload && rest.len() < 8 && rest.iter().all(|&byte| byte == 0) => {
                Ok(())
            }
            _ => Err(Error::Protocol(format!("request {id} came back changed"))),
        }
    }

    /// The channel, for what a test does besides.
    pub fn channel(&mut self) -> &mut Channel<P> {
        &mut self.channel
    }

    /// The channel, to close it.
    pub fn into_channel(self) -> Channel<P> {
        self.channel
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeHost, PATIENCE, connected, offered};
    use vmbus::guid::class;

    #[test]
    fn what_is_sent_comes_back() {
        let (host, mut client) = connected();
        let offer = offered(&mut client, class::ECHO);
        let mut echo = Echo::open(&mut client, &offer, &OpenOptions::default()).expect("opened");
        for len in [0, 1, 7, 8, 1000, 3000] {
            echo.echo(&vec![0x5a; len], PATIENCE).expect("an echo");
        }
        assert_eq!(echo.channel().counts().signals, 6, "one signal each, for the ring was empty");
        client.close(echo.into_channel()).expect("closed");
        assert_eq!(host.pages_shared(), 0);
    }

    #[test]
    fn many_requests_in_flight_keep_their_order() {
        let (_host, mut client): (std::sync::Arc<FakeHost>, _) = connected();
        let offer = offered(&mut client, class::ECHO);
        let mut echo = Echo::open(&mut client, &offer, &OpenOptions::default()).expect("opened");
        let ids: Vec<u64> =
            (0..20).map(|len| echo.send(&vec![len as u8; len * 8], PATIENCE).expect("sent")).collect();
        for (len, id) in ids.into_iter().enumerate() {
            echo.expect(id, &vec![len as u8; len * 8], PATIENCE).expect("an echo");
        }
    }
}
