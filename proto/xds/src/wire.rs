//! The little of protobuf's wire format that is read here without knowing the message.
