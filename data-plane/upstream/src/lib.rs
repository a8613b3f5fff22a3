//! culvert-upstream
