//! Payloads into messages: every field is read once, and nothing may be left over.

use std::os::fd::OwnedFd;

use super::{
    CONFIG_SPACE, InflightLayout, MAX_TABLE, Message, NO_DESCRIPTOR, RING_MASK, Region, RingAddress,
    WireError, request,
};

/// A payload, and how much of it has been read.
pub(super) struct Parser<'a> {
    request: u32,
    rest: &'a [u8],
    len: usize,
    fds: Vec<OwnedFd>,
}

impl<'a> Parser<'a> {
    pub fn new(request: u32, payload: &'a [u8], fds: Vec<OwnedFd>) -> Parser<'a> {
        Parser { request, rest: payload, len: payload.len(), fds }
    }

    /// The message, if that is all of it.
    pub fn parse(mut self) -> Result<Message, WireError> {
        let message = match self.request {
            request::GET_FEATURES => Message::GetFeatures,
            request::SET_FEATURES => Message::SetFeatures(self.long()?),
            request::SET_OWNER => Message::SetOwner,
            request::RESET_OWNER => Message::ResetOwner,
            request::SET_MEM_TABLE => return self.table(),
            request::SET_VRING_NUM => Message::SetVringNum { ring: self.word()?, num: self.word()? },
            request::SET_VRING_ADDR => {
                // The flags ask for a log, which is not offered; its address is the last field.
                let (ring, flags) = (self.word()?, self.word()?);
                let (descriptors, used, available) = (self.long()?, self.long()?, self.long()?);
                self.long()?;
                if flags != 0 {
                    return Err(WireError::Field(self.request));
                }
                Message::SetVringAddr { ring, address: RingAddress { descriptors, used, available } }
            }
            request::SET_VRING_BASE => Message::SetVringBase { ring: self.word()?, base: self.word()? },
            request::GET_VRING_BASE => {
                let ring = self.word()?;
                self.word()?;
                Message::GetVringBase { ring }
            }
            request::SET_VRING_KICK => {
                let (ring, fd) = self.ring_and_fd()?;
                Message::SetVringKick { ring, fd: fd.ok_or(WireError::Polled(self.request))? }
            }
            request::SET_VRING_CALL => {
                let (ring, fd) = self.ring_and_fd()?;
                Message::SetVringCall { ring, fd }
            }
            request::SET_VRING_ERR => {
                let (ring, fd) = self.ring_and_fd()?;
                Message::SetVringErr { ring, fd }
            }
            request::GET_PROTOCOL_FEATURES => Message::GetProtocolFeatures,
            request::SET_PROTOCOL_FEATURES => Message::SetProtocolFeatures(self.long()?),
            request::GET_QUEUE_NUM => Message::GetQueueNum,
            request::SET_VRING_ENABLE => {
                let (ring, enable) = (self.word()?, self.word()?);
                if enable > 1 {
                    return Err(WireError::Field(self.request));
                }
                Message::SetVringEnable { ring, enable: enable == 1 }
            }
            request::GET_CONFIG => {
                let (offset, len, flags) = self.config()?;
                self.take(len as usize)?;
                Message::GetConfig { offset, len, flags }
            }
            request::SET_CONFIG => {
                let (offset, len, flags) = self.config()?;
                Message::SetConfig { offset, flags, bytes: self.take(len as usize)?.to_vec() }
            }
            request::GET_INFLIGHT_FD => Message::GetInflightFd(self.inflight()?),
            request::SET_INFLIGHT_FD => {
                let layout = self.inflight()?;
                Message::SetInflightFd(layout, self.fd()?)
            }
            request::GET_MAX_MEM_SLOTS => Message::GetMaxMemSlots,
            request::ADD_MEM_REG => {
                self.long()?;
                let region = self.region()?;
                Message::AddMemReg(region, self.fd()?)
            }
            request::REM_MEM_REG => {
                self.long()?;
                let region = self.region()?;
                // Some front ends send the one that they have sent with the addition.
                self.fds.truncate(self.fds.len().saturating_sub(1));
                Message::RemMemReg(region)
            }
            unknown => return Err(WireError::Unknown(unknown)),
        };
        self.end()?;
        Ok(message)
    }

    fn table(mut self) -> Result<Message, WireError> {
        let count = self.word()? as usize;
        self.word()?;
        if count > MAX_TABLE {
            return Err(WireError::Field(self.request));
        }
        let regions = (0..count).map(|_| self.region()).collect::<Result<Vec<_>, _>>()?;
        if self.fds.len() != count {
            return Err(self.descriptors(count));
        }
        let table = regions.into_iter().zip(std::mem::take(&mut self.fds)).collect();
        self.end()?;
        Ok(Message::SetMemTable(table))
    }

    fn end(&self) -> Result<(), WireError> {
        if !self.rest.is_empty() {
            return Err(self.length());
        }
        if !self.fds.is_empty() {
            return Err(self.descriptors(0));
        }
        Ok(())
    }

    fn length(&self) -> WireError {
        WireError::Length { request: self.request, len: self.len }
    }

    fn descriptors(&self, wanted: usize) -> WireError {
        WireError::Descriptors { request: self.request, fds: self.fds.len(), wanted }
    }

    fn take(&mut self, len: usize) -> Result<&[u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or_else(|| self.length())?;
        self.rest = rest;
        Ok(taken)
    }

    fn word(&mut self) -> Result<u32, WireError> {
        let bytes = self.take(4)?.try_into();
        bytes.map(u32::from_ne_bytes).map_err(|_| self.length())
    }

    fn long(&mut self) -> Result<u64, WireError> {
        let bytes = self.take(8)?.try_into();
        bytes.map(u64::from_ne_bytes).map_err(|_| self.length())
    }

    fn fd(&mut self) -> Result<OwnedFd, WireError> {
        if self.fds.len() != 1 {
            return Err(self.descriptors(1));
        }
        self.fds.pop().ok_or_else(|| self.descriptors(1))
    }

    fn ring_and_fd(&mut self) -> Result<(u32, Option<OwnedFd>), WireError> {
        let word = self.long()?;
        if word & !(RING_MASK | NO_DESCRIPTOR) != 0 {
            return Err(WireError::Field(self.request));
        }
        let fd = if word & NO_DESCRIPTOR == 0 { Some(self.fd()?) } else { None };
        Ok(((word & RING_MASK) as u32, fd))
    }

    fn region(&mut self) -> Result<Region, WireError> {
        let region =
            Region { gpa: self.long()?, len: self.long()?, user: self.long()?, offset: self.long()? };
        let fits = |from: u64| from.checked_add(region.len).is_some();
        if region.len == 0 || !fits(region.gpa) || !fits(region.user) || !fits(region.offset) {
            return Err(WireError::Field(self.request));
        }
        Ok(region)
    }

    fn config(&mut self) -> Result<(u32, u32, u32), WireError> {
        let (offset, len, flags) = (self.word()?, self.word()?, self.word()?);
        let inside = offset.checked_add(len).is_some_and(|end| end as usize <= CONFIG_SPACE);
        if len == 0 || !inside {
            return Err(WireError::Field(self.request));
        }
        Ok((offset, len, flags))
    }

    fn inflight(&mut self) -> Result<InflightLayout, WireError> {
        let (size, offset, numbers) = (self.long()?, self.long()?, self.word()?);
        // C pads the structure to a multiple of 8; not everybody sends the padding.
        if !self.rest.is_empty() {
            self.word()?;
        }
        Ok(InflightLayout { size, offset, queues: numbers as u16, entries: (numbers >> 16) as u16 })
    }
}
