"""AUROC and its intervals: functions of arrays that know no models."""
