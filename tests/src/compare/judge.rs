pub fn judge() {}
