"""VideoReTalking's nets (Cheng et al., 2022), written for streams; they load the official files."""
