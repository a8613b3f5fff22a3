mod forwarding;
mod tables;
