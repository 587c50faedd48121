"""Floor 3: OpenTelemetry set-up. Spans carry sizes and counts, never contents."""
