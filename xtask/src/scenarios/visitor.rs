//! Who looks at a guest's screen from outside the lab: programs that were not written here.

mod browser;
mod vncdotool;

use anyhow::Result;

use crate::job::Visit;

/// What a scenario prints when its screen can be looked at.
pub const COME: &str = "screen: come in";

/// Somebody with a screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visitor {
    /// The VNC client of that name from PyPI.
    VncDoTool,
    /// Debian's browser, without a window.
    Chromium,
}

impl Visitor {
    /// Whether it can be had on this machine; makes it so if possible.
    pub fn ready(self) -> Result<bool> {
        match self {
            Self::VncDoTool => vncdotool::ready(),
            Self::Chromium => browser::ready(),
        }
    }

    /// What it does.
    pub fn visit(self) -> Visit {
        let visitor = match self {
            Self::VncDoTool => vncdotool::visit,
            Self::Chromium => browser::visit,
        };
        Visit { when: COME, visitor }
    }
}
