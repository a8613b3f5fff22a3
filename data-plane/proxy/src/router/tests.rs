mod bodies;
mod forwarding;
mod tables;
