//! A function's table of messages, as a driver fills it.

use super::{Bus, refused};
use crate::error::Error;
use crate::pci::wire::Message;
use crate::platform::Platform;

/// A function's table of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// Where it is.
    pub at: u64,
    /// How many messages there are.
    pub vectors: u32,
}

impl<P: Platform> Bus<P> {
    /// Turns the table of messages on, all of them silent.
    pub fn enable_msix(&mut self) -> Result<Table, Error> {
        let at = self.capability(0x11)?.ok_or_else(|| Error::Protocol("no table of messages".into()))?;
        let control = self.read_config(at + 2, 2)?;
        self.write_config(at + 2, 2, control | 0xc000)?;
        let table = self.read_config(at + 4, 4)?;
        let bar = self.bar((table & 7) as usize);
        let place = bar.ok_or_else(|| Error::Protocol("the table of messages is nowhere".into()))?;
        let table = Table { at: place + u64::from(table & !7), vectors: (control & 0x7ff) + 1 };
        (0..table.vectors).for_each(|vector| self.mask(&table, vector, true));
        self.write_config(at + 2, 2, (control | 0x8000) & !0x4000)?;
        Ok(table)
    }

    /// Silences a vector, or lets it speak.
    pub fn mask(&self, table: &Table, vector: u32, masked: bool) {
        let at = table.at + u64::from(vector) * 16 + 12;
        self.platform().write(at, &u32::from(masked).to_le_bytes());
    }

    /// Gives a vector its message, and moves it to a processor, as the driver does it on a request for the interrupt and when it is to go
    /// elsewhere; the message before is given back.
    pub fn set_vector(
        &mut self,
        table: &Table,
        number: u32,
        (vector, vp): (u8, u16),
        before: Option<&Message>,
    ) -> Result<Message, Error> {
        self.mask(table, number, true);
        if let Some(before) = before {
            self.delete_interrupt(before)?;
        }
        let message = self.create_interrupt(vector, 1, vp)?;
        let at = table.at + u64::from(number) * 16;
        let words = [(0, message.address as u32), (4, (message.address >> 32) as u32), (8, message.data)];
        for (offset, word) in words {
            self.platform().write(at + offset, &word.to_le_bytes());
        }
        match self.retarget(&message, vector, 1 << vp)? {
            0 => {}
            status => return Err(refused("retargeting", status.into())),
        }
        self.mask(table, number, false);
        Ok(message)
    }
}
