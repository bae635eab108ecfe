"""Speed beside the field's usual code, and readability figures of ours."""
