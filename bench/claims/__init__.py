"""Published tables judged: which claimed improvements does their test set support?"""
