//! From the first byte to the picture's size (RFC 6143, 7.1 to 7.3; VeNCrypt after the community's document).

use std::time::Instant;

use super::Fault;
use super::password::{CHALLENGE, Guard, Password};

/// What a viewer has to show, by the way it has come.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// It has to know this.
    pub password: Option<Password>,
    /// It has to speak TLS.
    pub tls: bool,
}

/// What is not pure.
#[derive(Debug)]
pub struct World<'a> {
    /// Slows down guessing.
    pub guard: &'a mut Guard,
    /// The time.
    pub now: Instant,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes are needed.
    More,
    /// So many bytes were taken; there may be more to do.
    Taken(usize),
    /// So many bytes were taken, and TLS begins with the next, once everything so far has been sent.
    StartTls(usize),
    /// So many bytes were taken. The viewer is to be told the picture's size and speaks messages from now on. With `alone` it
    /// wants all others to go, which they need not.
    Done {
        /// How many.
        taken: usize,
        /// It does not want to share.
        alone: bool,
    },
}

/// The conversation so far.
#[derive(Clone, Debug)]
pub struct Handshake {
    access: Access,
    challenge: [u8; CHALLENGE],
    state: State,
    minor: Minor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Version,
    Security,
    VencryptVersion,
    VencryptType,
    Challenge,
    Init,
}

/// The protocol's minor version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Minor {
    Three,
    Seven,
    Eight,
}

const NONE: u8 = 1;
const VNC: u8 = 2;
const VENCRYPT: u8 = 19;

/// VeNCrypt's subtypes with a certificate.
const X509_NONE: u32 = 260;
const X509_VNC: u32 = 261;

impl Handshake {
    /// Begins it: the server speaks first. `challenge` are bytes that nobody can foretell, for this handshake alone.
    pub fn new(access: Access, challenge: [u8; CHALLENGE], out: &mut Vec<u8>) -> Handshake {
        out.extend_from_slice(b"RFB 003.008\n");
        Handshake { access, challenge, state: State::Version, minor: Minor::Eight }
    }

    /// Takes what it can of the viewer's bytes, and answers.
    pub fn receive(&mut self, bytes: &[u8], world: &mut World<'_>, out: &mut Vec<u8>) -> Result<Step, Fault> {
        match self.state {
            State::Version => {
                let Some(version) = bytes.first_chunk() else { return not_rfb(bytes) };
                self.minor = minor(version)?;
                self.offer(world, out)?;
                Ok(Step::Taken(version.len()))
            }
            State::Security => {
                let Some(&chosen) = bytes.first() else { return Ok(Step::More) };
                if chosen != self.offered() {
                    self.refuse(Fault::Security, out);
                    return Err(Fault::Security);
                }
                match chosen {
                    VENCRYPT => {
                        out.extend_from_slice(&[0, 2]);
                        self.state = State::VencryptVersion;
                    }
                    _ => self.begin_authentication(out),
                }
                Ok(Step::Taken(1))
            }
            State::VencryptVersion => {
                let Some(version) = bytes.first_chunk() else { return Ok(Step::More) };
                if *version != [0, 2] {
                    out.push(1);
                    return Err(Fault::Security);
                }
                // It is agreed to; one subtype.
                out.extend_from_slice(&[0, 1]);
                out.extend_from_slice(&self.subtype().to_be_bytes());
                self.state = State::VencryptType;
                Ok(Step::Taken(version.len()))
            }
            State::VencryptType => {
                let Some(chosen) = bytes.first_chunk() else { return Ok(Step::More) };
                if u32::from_be_bytes(*chosen) != self.subtype() {
                    out.push(0);
                    return Err(Fault::Security);
                }
                out.push(1);
                // What follows is sent inside: see `begin_inside`.
                Ok(Step::StartTls(chosen.len()))
            }
            State::Challenge => {
                let Some(answer) = bytes.first_chunk() else { return Ok(Step::More) };
                // Also here: who was asked in time on many connections would have a guess on each of them.
                if self.is_closed(world) {
                    self.refuse(Fault::TooManyAttempts, out);
                    return Err(Fault::TooManyAttempts);
                }
                let right =
                    self.access.password.as_ref().is_none_or(|known| known.accepts(&self.challenge, answer));
                world.guard.note(right, world.now);
                if !right {
                    self.refuse(Fault::Password, out);
                    return Err(Fault::Password);
                }
                out.extend_from_slice(&0u32.to_be_bytes());
                self.state = State::Init;
                Ok(Step::Taken(answer.len()))
            }
            State::Init => match bytes.first() {
                Some(shared) => Ok(Step::Done { taken: 1, alone: *shared == 0 }),
                None => Ok(Step::More),
            },
        }
    }

    /// TLS has begun: what is sent from now on is sent inside.
    pub fn begin_inside(&mut self, out: &mut Vec<u8>) {
        self.begin_authentication(out);
    }

    /// Whether it is agreed how the viewer shows who it is, so that it may ask a person now: for the password, or whether the certificate
    /// is the right one.
    pub fn may_ask_people(&self) -> bool {
        let asks = self.access.password.is_some() || self.access.tls;
        asks && matches!(self.state, State::Challenge | State::Init)
    }

    /// Whether too many have tried passwords.
    fn is_closed(&self, world: &World<'_>) -> bool {
        self.access.password.is_some() && !world.guard.is_open(world.now)
    }

    fn offered(&self) -> u8 {
        match (&self.access.password, self.access.tls) {
            (_, true) => VENCRYPT,
            (Some(_), false) => VNC,
            (None, false) => NONE,
        }
    }

    fn subtype(&self) -> u32 {
        if self.access.password.is_some() { X509_VNC } else { X509_NONE }
    }

    fn offer(&mut self, world: &mut World<'_>, out: &mut Vec<u8>) -> Result<(), Fault> {
        let offered = self.offered();
        let closed = self.is_closed(world);
        if closed || self.minor == Minor::Three && offered == VENCRYPT {
            let fault = if closed { Fault::TooManyAttempts } else { Fault::Security };
            // No kinds of security, and why.
            match self.minor {
                Minor::Three => out.extend_from_slice(&0u32.to_be_bytes()),
                Minor::Seven | Minor::Eight => out.push(0),
            }
            put_reason(fault, out);
            return Err(fault);
        }
        if self.minor == Minor::Three {
            // It is told, not asked.
            out.extend_from_slice(&u32::from(offered).to_be_bytes());
            self.begin_authentication(out);
        } else {
            out.extend_from_slice(&[1, offered]);
            self.state = State::Security;
        }
        Ok(())
    }

    fn begin_authentication(&mut self, out: &mut Vec<u8>) {
        if self.access.password.is_some() {
            out.extend_from_slice(&self.challenge);
            self.state = State::Challenge;
        } else {
            // Without authentication the result is told since 3.8.
            if self.minor >= Minor::Eight {
                out.extend_from_slice(&0u32.to_be_bytes());
            }
            self.state = State::Init;
        }
    }

    /// It failed, and since 3.8 why.
    fn refuse(&self, fault: Fault, out: &mut Vec<u8>) {
        out.extend_from_slice(&1u32.to_be_bytes());
        if self.minor >= Minor::Eight {
            put_reason(fault, out);
        }
    }
}

fn put_reason(fault: Fault, out: &mut Vec<u8>) {
    let reason = fault.to_string();
    out.extend_from_slice(&(reason.len() as u32).to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

fn minor(version: &[u8; 12]) -> Result<Minor, Fault> {
    let digits: &[u8; 3] = match version {
        [b'R', b'F', b'B', b' ', b'0', b'0', b'3', b'.', digits @ .., b'\n'] => digits,
        _ => return Err(Fault::Version),
    };
    match std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<u16>().ok()) {
        Some(3..=6) => Ok(Minor::Three),
        Some(7) => Ok(Minor::Seven),
        Some(8..) => Ok(Minor::Eight),
        _ => Err(Fault::Version),
    }
}

/// Too short for a version; but is it the beginning of one?
fn not_rfb(bytes: &[u8]) -> Result<Step, Fault> {
    let begin = b"RFB 003.";
    let len = bytes.len().min(begin.len());
    if bytes[..len] == begin[..len] { Ok(Step::More) } else { Err(Fault::Version) }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Talk {
        handshake: Handshake,
        guard: Guard,
        out: Vec<u8>,
    }

    impl Talk {
        fn new(password: Option<&str>, tls: bool) -> Talk {
            let password = password.map(|text| Password::of_file(text.as_bytes()).unwrap());
            let mut out = Vec::new();
            let handshake = Handshake::new(Access { password, tls }, [9; CHALLENGE], &mut out);
            assert_eq!(out, b"RFB 003.008\n");
            out.clear();
            Talk { handshake, guard: Guard::default(), out }
        }

        /// Says this, and hears that.
        fn say(&mut self, bytes: &[u8]) -> Result<(Step, Vec<u8>), Fault> {
            let mut world = World { guard: &mut self.guard, now: Instant::now() };
            for len in 0..bytes.len() {
                let early = self.handshake.receive(&bytes[..len], &mut world, &mut self.out);
                assert_eq!(early, Ok(Step::More), "{len} of {bytes:?}");
            }
            let step = self.handshake.receive(bytes, &mut world, &mut self.out)?;
            Ok((step, std::mem::take(&mut self.out)))
        }
    }

    #[test]
    fn without_a_password() {
        let mut talk = Talk::new(None, false);
        assert_eq!(talk.say(b"RFB 003.008\n"), Ok((Step::Taken(12), vec![1, 1])));
        assert_eq!(talk.say(&[1]), Ok((Step::Taken(1), vec![0, 0, 0, 0])));
        assert_eq!(talk.say(&[1]), Ok((Step::Done { taken: 1, alone: false }, vec![])));
        let mut old = Talk::new(None, false);
        assert_eq!(old.say(b"RFB 003.003\n"), Ok((Step::Taken(12), vec![0, 0, 0, 1])));
        assert_eq!(old.say(&[0]), Ok((Step::Done { taken: 1, alone: true }, vec![])));
        let mut middle = Talk::new(None, false);
        assert_eq!(middle.say(b"RFB 003.007\n"), Ok((Step::Taken(12), vec![1, 1])));
        assert_eq!(middle.say(&[1]), Ok((Step::Taken(1), vec![])));
    }

    #[test]
    fn with_a_password() {
        for version in [b"RFB 003.003\n", b"RFB 003.007\n", b"RFB 003.889\n"] {
            let mut talk = Talk::new(Some("secret"), false);
            let (_, mut heard) = talk.say(version).unwrap();
            if heard == [1, 2] {
                heard = talk.say(&[2]).unwrap().1;
            }
            assert_eq!(heard[heard.len() - CHALLENGE..], [9; CHALLENGE]);
            let answer = Password::of_file(b"secret").unwrap().answer(&[9; CHALLENGE]);
            assert_eq!(talk.say(&answer), Ok((Step::Taken(16), vec![0, 0, 0, 0])));
        }
    }

    #[test]
    fn a_wrong_password_is_told_and_cut_off() {
        let mut talk = Talk::new(Some("secret"), false);
        talk.say(b"RFB 003.008\n").unwrap();
        talk.say(&[2]).unwrap();
        assert_eq!(talk.say(&[0; CHALLENGE]), Err(Fault::Password));
        assert_eq!(talk.out[..4], [0, 0, 0, 1]);
        assert!(talk.out.ends_with(Fault::Password.to_string().as_bytes()));
    }

    #[test]
    fn nothing_but_what_was_offered_may_be_chosen() {
        for (password, chosen) in [(Some("secret"), 1), (Some("secret"), 19), (None, 2)] {
            let mut talk = Talk::new(password, false);
            talk.say(b"RFB 003.008\n").unwrap();
            assert_eq!(talk.say(&[chosen]), Err(Fault::Security));
        }
        for version in [b"RFB 003.002\n", b"RFB 004.000\n", b"GET / HTTP/1"] {
            let mut talk = Talk::new(None, false);
            let mut world = World { guard: &mut talk.guard, now: Instant::now() };
            assert_eq!(talk.handshake.receive(version, &mut world, &mut talk.out), Err(Fault::Version));
        }
        assert_eq!(not_rfb(b"GET"), Err(Fault::Version));
    }

    #[test]
    fn nobody_is_asked_after_too_many_wrong_passwords() {
        let mut talk = Talk::new(Some("secret"), false);
        for _ in 0..5 {
            talk.guard.note(false, Instant::now());
        }
        assert_eq!(talk.say(b"RFB 003.008\n"), Err(Fault::TooManyAttempts));
        assert_eq!(talk.out[0], 0);
    }

    #[test]
    fn who_was_asked_before_that_is_not_heard_either() {
        let mut talk = Talk::new(Some("secret"), false);
        talk.say(b"RFB 003.008\n").unwrap();
        talk.say(&[2]).unwrap();
        for _ in 0..5 {
            talk.guard.note(false, Instant::now());
        }
        let answer = Password::of_file(b"secret").unwrap().answer(&[9; CHALLENGE]);
        assert_eq!(talk.say(&answer), Err(Fault::TooManyAttempts));
        assert!(talk.out.ends_with(Fault::TooManyAttempts.to_string().as_bytes()));
    }

    #[test]
    fn tls_comes_before_the_password() {
        let mut talk = Talk::new(Some("secret"), true);
        assert_eq!(talk.say(b"RFB 003.008\n"), Ok((Step::Taken(12), vec![1, 19])));
        assert_eq!(talk.say(&[19]), Ok((Step::Taken(1), vec![0, 2])));
        assert_eq!(talk.say(&[0, 2]), Ok((Step::Taken(2), vec![0, 1, 0, 0, 1, 5])));
        assert_eq!(talk.say(&[0, 0, 1, 5]), Ok((Step::StartTls(4), vec![1])));
        talk.handshake.begin_inside(&mut talk.out);
        assert_eq!(talk.out, [9; CHALLENGE]);
        let mut old = Talk::new(None, true);
        assert_eq!(old.say(b"RFB 003.003\n"), Err(Fault::Security));
    }
}
