"""What no document exercises, and what files hold beside what they state: NaN anywhere, layers left plain."""
