"""The two ends of the pipe: photos, speech and video, in and out, in numpy."""
