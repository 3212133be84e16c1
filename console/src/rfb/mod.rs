//! The remote framebuffer protocol, version 3.8 (RFC 6143) with what the community has added (the "rfbproto" document): messages
//! and the handshake, as pure functions of bytes.
//!
//! * [`pixel`]: how a viewer wants its pixels.
//! * [`message`]: what a viewer says.
//! * [`encodings`]: what a viewer understands.
//! * [`handshake`]: from the first byte to the first message; [`password`]: VNC's authentication.
//! * [`reply`]: what is said to a viewer, pixels apart.

pub mod encodings;
pub mod handshake;
pub mod message;
pub mod password;
pub mod pixel;
pub mod reply;

use thiserror::Error;

/// Why a viewer is cut off: what it says makes no sense, or is more than anybody may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// No RFB client.
    #[error("the peer does not speak RFB 3.3 to 3.8")]
    Version,
    /// It chose what was not offered.
    #[error("the viewer chose a kind of security that was not offered")]
    Security,
    /// A wrong password.
    #[error("the viewer gave a wrong password")]
    Password,
    /// Too many wrong passwords of late.
    #[error("there were too many wrong passwords of late; nobody is asked now")]
    TooManyAttempts,
    /// A palette, or bits that do not fit.
    #[error("the viewer asks for a pixel format that makes no sense, or for a palette")]
    PixelFormat,
    /// An unknown message.
    #[error("the viewer sent a message of the unknown type {0}")]
    Message(u8),
    /// A message of absurd length.
    #[error("the viewer announced {0} of one message, which is more than anybody may send")]
    TooLong(u32),
}
