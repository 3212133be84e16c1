//! How a viewer gets in (RFC 6143, 7.1 and 7.2).

use anyhow::{bail, ensure};
use des::Des;
use des::cipher::{BlockCipherEncrypt, KeyInit};

use crate::screen::wire::Wire;

/// Says which version is spoken; which ways there are to show who one is.
pub(super) fn greet(wire: &mut Wire) -> anyhow::Result<Vec<u8>> {
    let hello = wire.array::<12>()?;
    ensure!(&hello == b"RFB 003.008\n", "the server begins with {:?}", String::from_utf8_lossy(&hello));
    wire.send(&hello)?;
    match wire.u8()? {
        0 => bail!("refused: {}", reason(wire)?),
        count => wire.vec(count.into()),
    }
}

pub(super) fn authenticate(wire: &mut Wire, offered: &[u8], password: Option<&str>) -> anyhow::Result<()> {
    match password {
        None => {
            ensure!(offered.contains(&1), "there is no way in without showing who one is: {offered:?}");
            wire.send(&[1])?;
        }
        Some(password) => {
            ensure!(offered.contains(&2), "a password is not asked for: {offered:?}");
            wire.send(&[2])?;
            let challenge = wire.array::<16>()?;
            wire.send(&response(password, &challenge))?;
        }
    }
    match wire.u32()? {
        0 => Ok(()),
        _ => bail!("refused: {}", reason(wire)?),
    }
}

fn reason(wire: &mut Wire) -> anyhow::Result<String> {
    let len = wire.u32()?;
    Ok(String::from_utf8_lossy(&wire.vec(len as usize)?).into_owned())
}

/// The challenge, encrypted with the password, whose bytes are keys with their bits the other way round (RFC 6143, 7.2.2).
fn response(password: &str, challenge: &[u8; 16]) -> [u8; 16] {
    let mut key = [0; 8];
    for (to, from) in key.iter_mut().zip(password.bytes()) {
        *to = from.reverse_bits();
    }
    let cipher = Des::new(&key.into());
    let mut answer = *challenge;
    for block in answer.chunks_exact_mut(8) {
        let mut half = [0; 8];
        half.copy_from_slice(block);
        let mut half = half.into();
        cipher.encrypt_block(&mut half);
        block.copy_from_slice(&half);
    }
    answer
}
