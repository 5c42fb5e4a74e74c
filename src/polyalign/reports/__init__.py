"""What people look at: tables, comparisons, the HTML report, the model card."""
