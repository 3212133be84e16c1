//! The control protocol between core, device processes and operators.

use ipc::message::{ToCore, ToVsp};
use ipc::operator::{Reply, Request};

macro_rules! round_trip {
    ($message:ty, $data:expr) => {
        if let Ok(message) = serde_json::from_slice::<$message>($data) {
            let text = serde_json::to_vec(&message).expect("a message has a text form");
            assert_eq!(serde_json::from_slice::<$message>(&text).expect("our own text"), message);
        }
    };
}

/// A datagram of a peer. Whatever is understood survives the way back.
pub fn ipc_message(data: &[u8]) {
    round_trip!(ToCore, data);
    round_trip!(ToVsp, data);
    round_trip!(Request, data);
    round_trip!(Reply, data);
}
