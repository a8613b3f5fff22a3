mod allocations;
mod bodies;
mod counting;
mod forwarding;
mod tables;
