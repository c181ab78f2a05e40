"""Files: readers, writers, grey values, labels, the Kaggle download."""
