//! The writing end of a process's stdin.

use crate::error::Result;

pub struct StdinWriter {
    _private: (),
}

impl StdinWriter {
    /// Writes all of it; waits while the process does not read.
    pub async fn write_all(&mut self, data: &[u8]) -> Result<()> {
        let _ = data;
        unimplemented!()
    }

    /// Ends the input: the process reads end of file (a tty gets nothing).
    pub async fn close(self) -> Result<()> {
        unimplemented!()
    }
}
