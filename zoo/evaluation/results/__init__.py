"""Results of evaluations: records, their files, intervals."""
