//! local_reply
