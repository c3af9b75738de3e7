"""Who may do what: join lines, identities, users, rules. Links are not known here."""
