//! Every metric declared once, the access log, log set-up.
