"""What is fitted on validation images after training, without torch: calibration, prediction sets, thresholds, the
out-of-distribution score."""
