//! The TCP proxy.

use std::sync::Arc;

use culvert_model::listener;

use crate::listener::CompileError;
use crate::worker::Process;

#[derive(Debug)]
pub(crate) struct TcpProxy {}

impl TcpProxy {
    pub(crate) fn compile(config: &Arc<listener::TcpProxy>, process: &Process) -> Result<Arc<Self>, CompileError> {
        let _ = (config, process);
        todo!()
    }
}
