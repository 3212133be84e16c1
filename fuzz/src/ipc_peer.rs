//! The control protocol between core and device processes.

use ipc::message::{ToCore, ToVsp};

/// A datagram of a peer. Whatever is understood survives the way back.
pub fn ipc_message(data: &[u8]) {
    if let Ok(message) = serde_json::from_slice::<ToCore>(data) {
        let text = serde_json::to_vec(&message).expect("a message has a text form");
        assert_eq!(serde_json::from_slice::<ToCore>(&text).expect("our own text"), message);
    }
    if let Ok(message) = serde_json::from_slice::<ToVsp>(data) {
        let text = serde_json::to_vec(&message).expect("a message has a text form");
        assert_eq!(serde_json::from_slice::<ToVsp>(&text).expect("our own text"), message);
    }
}
