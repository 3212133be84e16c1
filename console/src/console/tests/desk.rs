//! A console on a table: its devices and viewers are the test.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ipc::shm::{Mapping, SharedMemory};
use seat::video::{Depth, Rect, Rects, Surface, ToConsole};
use seat::{Sent, keyboard, mouse, video};

use crate::console::{Console, Setting};
use crate::listener::Listener;
use crate::rfb::password::Password;
use crate::stream::TlsConfig;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Desk {
    pub console: Console,
    pub video: video::DeviceEnd,
    pub keyboard: keyboard::DeviceEnd,
    pub mouse: mouse::DeviceEnd,
    pub directory: PathBuf,
    memory: SharedMemory,
    vram: Mapping,
    pub surface: Surface,
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Desk {
    pub fn new() -> Desk {
        Desk::with(None, None, None)
    }

    pub fn with(tcp: Option<TcpListener>, password: Option<&str>, tls: Option<TlsConfig>) -> Desk {
        Desk::set(|setting| {
            setting.listeners.extend(tcp.map(|tcp| Listener::new(tcp.into()).unwrap()));
            setting.password = password.and_then(|text| Password::of_file(text.as_bytes()));
            setting.tls = tls;
        })
    }

    /// With something besides the plainest.
    pub fn set(more: impl FnOnce(&mut Setting)) -> Desk {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("bulkhead-desk-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (video, video_end) = video::DeviceEnd::pair().unwrap();
        let (keyboard, keyboard_end) = keyboard::DeviceEnd::pair().unwrap();
        let (mouse, mouse_end) = mouse::DeviceEnd::pair().unwrap();
        let listen = |name: &str| {
            let listener = UnixListener::bind(directory.join(name)).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        };
        let mut setting = Setting {
            name: "table".to_owned(),
            video: video_end,
            keyboard: keyboard_end,
            mouse: mouse_end,
            listeners: vec![Listener::new(listen("rfb").into()).unwrap()],
            control: Some(listen("control")),
            web: None,
            password: None,
            tls: None,
        };
        more(&mut setting);
        let console = Console::new(setting).unwrap();
        let memory = SharedMemory::create("vram", 4 << 20).unwrap();
        let vram = Mapping::new(&memory, 0, 4 << 20).unwrap();
        let surface = Surface {
            width: 200,
            height: 130,
            stride: 832,
            depth: Depth::Xrgb8888,
            offset: 64,
            vram_bytes: 4 << 20,
        };
        let mut desk = Desk { console, video, keyboard, mouse, directory, memory, vram, surface };
        desk.turns(3);
        desk
    }

    /// Lets the console do what it can.
    pub fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.console.turn(Some(Duration::ZERO)).unwrap();
        }
    }

    /// Lets it go on until this is so.
    pub fn until<T>(&mut self, mut it: impl FnMut(&mut Desk) -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(found) = it(self) {
                return found;
            }
            assert!(begin.elapsed() < PATIENCE, "it never came");
            self.console.turn(Some(Duration::from_millis(1))).unwrap();
        }
    }

    pub fn say(&mut self, message: &ToConsole) {
        let memory = matches!(message, ToConsole::Surface(_)).then_some(&self.memory);
        assert_eq!(self.video.send(message, memory).unwrap(), Sent::Whole);
        self.turns(1);
    }

    /// The guest shows a picture of this size.
    pub fn show(&mut self, width: u32, height: u32) {
        self.surface = Surface { width, height, stride: width * 4 + 32, ..self.surface };
        self.say(&ToConsole::Surface(self.surface));
    }

    /// The guest draws, and says so.
    pub fn draw(&mut self, rect: Rect, colour: impl Fn(u32, u32) -> u32) {
        for y in rect.y1 as u32..rect.y2 as u32 {
            for x in rect.x1 as u32..rect.x2 as u32 {
                let at = self.surface.offset as usize + (y * self.surface.stride + x * 4) as usize;
                self.vram.write(at, &colour(x, y).to_le_bytes());
            }
        }
        let mut rects = Rects::NONE;
        assert!(rects.push(rect));
        self.say(&ToConsole::Dirty(rects));
    }

    /// What the guest has drawn.
    pub fn drawn(&self) -> Vec<u32> {
        let Surface { width, height, stride, offset, .. } = self.surface;
        let mut pixels = Vec::new();
        for y in 0..height {
            for x in 0..width {
                let mut bytes = [0; 4];
                self.vram.read(offset as usize + (y * stride + x * 4) as usize, &mut bytes);
                pixels.push(u32::from_le_bytes(bytes));
            }
        }
        pixels
    }

    pub fn keys(&mut self) -> Vec<keyboard::FromConsole> {
        self.turns(2);
        std::iter::from_fn(|| self.keyboard.receive().unwrap()).map(|received| received.message).collect()
    }

    pub fn clicks(&mut self) -> Vec<mouse::FromConsole> {
        self.turns(2);
        std::iter::from_fn(|| self.mouse.receive().unwrap()).map(|received| received.message).collect()
    }

    pub fn connect(&self, name: &str) -> UnixStream {
        let stream = UnixStream::connect(self.directory.join(name)).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }

    /// A request, and its answer's line.
    pub fn command(&mut self, stream: &mut UnixStream, request: &str) -> serde_json::Value {
        stream.write_all(request.as_bytes()).unwrap();
        stream.write_all(b"\n").unwrap();
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.extend(self.read(stream, 1));
        }
        serde_json::from_slice(&line).unwrap()
    }

    /// So many bytes.
    pub fn read(&mut self, stream: &mut impl Read, len: usize) -> Vec<u8> {
        let (mut bytes, mut at) = (vec![0; len], 0);
        self.until(|_| {
            while at < len {
                match stream.read(&mut bytes[at..]) {
                    Ok(0) => panic!("the console has hung up"),
                    Ok(more) => at += more,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                    Err(error) => panic!("{error}"),
                }
            }
            Some(())
        });
        bytes
    }

    /// Whether the console has hung up.
    pub fn is_cut_off(&mut self, stream: &mut impl Read) -> bool {
        self.turns(4);
        let mut bytes = [0; 4096];
        loop {
            match stream.read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() != ErrorKind::WouldBlock,
            }
        }
    }
}

/// A viewer that takes its pixels as they are.
pub struct Client {
    pub stream: UnixStream,
    pub size: (u32, u32),
    pub picture: Vec<u32>,
    /// Encodings of the rectangles of the last update.
    pub encodings: Vec<i32>,
}

impl Client {
    /// Comes, and has seen nothing yet.
    pub fn new(desk: &mut Desk) -> Client {
        let mut stream = desk.connect("rfb");
        assert_eq!(desk.read(&mut stream, 12), b"RFB 003.008\n");
        stream.write_all(b"RFB 003.008\n").unwrap();
        assert_eq!(desk.read(&mut stream, 2), [1, 1]);
        stream.write_all(&[1, 1]).unwrap();
        assert_eq!(desk.read(&mut stream, 4), [0; 4]);
        let init = desk.read(&mut stream, 24);
        let size = (word(&init[0..]), word(&init[2..]));
        assert_eq!(desk.read(&mut stream, 5), b"table");
        Client { stream, size, picture: vec![0; (size.0 * size.1) as usize], encodings: Vec::new() }
    }

    pub fn understand(&mut self, encodings: &[i32]) {
        let mut message = vec![2, 0, 0, encodings.len() as u8];
        encodings.iter().for_each(|number| message.extend_from_slice(&number.to_be_bytes()));
        self.stream.write_all(&message).unwrap();
    }

    pub fn ask(&mut self, incremental: bool) {
        let [width, height] = [self.size.0, self.size.1].map(|side| (side as u16).to_be_bytes());
        let message = [3, incremental.into(), 0, 0, 0, 0, width[0], width[1], height[0], height[1]];
        self.stream.write_all(&message).unwrap();
    }

    /// Takes updates until this is what it sees. It has asked for one before, and has again afterwards.
    pub fn follow(&mut self, desk: &mut Desk, wanted: &[u32]) {
        while self.picture != wanted {
            self.update(desk);
            self.ask(true);
        }
    }

    /// Takes one update.
    pub fn update(&mut self, desk: &mut Desk) {
        let head = desk.read(&mut self.stream, 4);
        assert_eq!(head[..2], [0, 0]);
        self.encodings.clear();
        for _ in 0..word(&head[2..]) {
            let head = desk.read(&mut self.stream, 12);
            let [x, y, width, height] = [0, 2, 4, 6].map(|at| word(&head[at..]));
            let encoding = i32::from_be_bytes(head[8..].try_into().unwrap());
            self.encodings.push(encoding);
            match encoding {
                0 => {
                    let bytes = desk.read(&mut self.stream, (width * height * 4) as usize);
                    for (index, pixel) in bytes.as_chunks().0.iter().enumerate() {
                        let (x, y) = (x + index as u32 % width, y + index as u32 / width);
                        self.picture[(y * self.size.0 + x) as usize] = u32::from_le_bytes(*pixel);
                    }
                }
                -223 => {
                    self.size = (width, height);
                    self.picture = vec![0; (width * height) as usize];
                }
                -314 => drop(desk.read(&mut self.stream, 4 + (width * height * 4) as usize)),
                -261 => drop(desk.read(&mut self.stream, 1)),
                -258 => {}
                other => panic!("encoding {other}"),
            }
        }
    }
}

fn word(bytes: &[u8]) -> u32 {
    u16::from_be_bytes([bytes[0], bytes[1]]).into()
}
