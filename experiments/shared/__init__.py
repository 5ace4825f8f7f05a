"""What all commands share: settings, jobs' ids, caches, errors."""
